"""Cloud Storage through the official client, against the real fake-gcs-server."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.errors import ConfigError, StorageError
from gce_backend.storage import Storage, parse_uri
from gce_backend.storage_errors import _meanings, check_emulator_host, translated

PATHS = RunPaths("mlflow-gce", "0" * 31 + "1")
MODEL = "m-" + "a" * 32


# ---------------------------------------------------------------------- objects


def test_an_object_is_created_once(storage: Storage) -> None:
    first = storage.put_once("a/b", b"content", content_type="text/plain")
    second = storage.put_once("a/b", b"content")

    assert (first, second) == (True, False)


def test_an_object_that_exists_with_other_content_is_left_as_it_is(storage: Storage) -> None:
    storage.put_once("a/b", b"content")

    with pytest.raises(StorageError, match=r"gs://.*/a/b: it exists with different content") as e:
        storage.put_once("a/b", b"other")

    assert not e.value.transient
    assert "gcloud storage cat gs://" in str(e.value)
    assert storage.read("a/b") == b"content"


@pytest.mark.parametrize("size", [0, 1000, 9 * 1024 * 1024])
def test_a_file_is_created_once_whatever_its_size(
    storage: Storage, tmp_path: Path, size: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))

    assert storage.put_once("file", file) is True
    assert storage.put_once("file", file) is False
    assert storage.read("file") == file.read_bytes()
    file.write_bytes(b"changed")
    with pytest.raises(StorageError, match="different content"):
        storage.put_once("file", file)


def test_an_object_streams_into_a_file(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000
    storage.put("big", content)

    with (tmp_path / "file").open("w+b") as file:
        assert storage.read_into("big", file) is True
        file.seek(0)
        assert file.read() == content
        assert storage.read_into("none", file) is False


def test_a_lost_reply_is_not_taken_for_somebody_elses_object(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _LosesFirstReply(storage_url()) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        created = Storage(bucket, retry_seconds=20).put_once("claim", b"mine")

    assert proxy.lost == 1
    assert created is True


def test_put_replaces_and_says_what_the_bucket_now_holds(storage: Storage) -> None:
    storage.put("heartbeat", b"1")
    info = storage.put("heartbeat", b"22")

    assert storage.read("heartbeat") == b"22"
    assert info == storage.info("heartbeat")
    assert (info.size, info.md5) == (2, hashlib.md5(b"22").hexdigest())


def test_what_is_absent_reads_as_none(storage: Storage) -> None:
    assert storage.read("nothing") is None
    assert storage.read_json("nothing") is None
    assert storage.info("nothing") is None
    assert storage.exists("nothing") is False


def test_json_that_is_none_is_named(storage: Storage) -> None:
    storage.put("status.json", b"{")

    with pytest.raises(StorageError, match=r"gs://.*/status.json is not JSON"):
        storage.read_json("status.json")


def test_a_listing_starts_after_the_given_name(storage: Storage) -> None:
    for name in ("log/1", "log/2", "log/2a", "log/3", "other"):
        storage.put(name, b"")

    assert [info.name for info in storage.list("log/")] == ["log/1", "log/2", "log/2a", "log/3"]
    assert [info.name for info in storage.list("log/", after="log/2")] == ["log/2a", "log/3"]
    assert list(storage.list("none/")) == []


def test_names_are_taken_literally(storage: Storage, weird_name: str) -> None:
    storage.put(weird_name, b"x")
    storage.copy(weird_name, weird_name + "2")

    assert [info.name for info in storage.list("")] == sorted([weird_name, weird_name + "2"])
    assert storage.read(weird_name + "2") == b"x"


def test_a_copy_has_the_checksum_of_its_source(storage: Storage) -> None:
    source = storage.put("source", b"x" * 1000)
    target = storage.copy("source", "target")

    assert (target.size, target.crc32c) == (source.size, source.crc32c)
    assert storage.read("target") == b"x" * 1000


def test_copying_what_is_absent_fails(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"cannot copy gs://.*/none to gs://.*/target"):
        storage.copy("none", "target")


def test_deleting_twice_is_fine(storage: Storage) -> None:
    storage.put("x", b"")
    storage.delete("x")
    storage.delete("x")

    assert not storage.exists("x")


# ---------------------------------------------------------------------- before a run


def test_check_accepts_a_usable_bucket_and_leaves_nothing(storage: Storage) -> None:
    storage.check()

    assert list(storage.list("")) == []


def test_check_names_a_missing_bucket_and_the_command_that_creates_it(bucket: str) -> None:
    with pytest.raises(StorageError) as error:
        Storage("no-such-bucket", project="p-1").check()

    assert str(error.value) == (
        "cannot use bucket 'no-such-bucket': it does not exist (404: Not Found). "
        "If it is the bucket that is missing, create it: gcloud storage buckets create "
        "gs://no-such-bucket --project=p-1 --location=europe-west1 --uniform-bucket-level-access"
    )
    assert not error.value.transient


def test_check_names_the_role_where_access_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with _Answers(403, "alice does not have storage.objects.create access") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        with pytest.raises(StorageError) as error:
            Storage("b").check()

    assert str(error.value) == (
        "cannot use bucket 'b': access is refused (403: alice does not have "
        "storage.objects.create access). Grant it with: gcloud storage buckets "
        "add-iam-policy-binding gs://b --member=user:YOU@EXAMPLE.COM "
        "--role=roles/storage.objectUser"
    )


def attempts(storage: Storage) -> list[Callable[[], object]]:
    return [
        lambda: storage.read("x"),
        lambda: storage.put("x", b""),
        lambda: list(storage.list("x")),
        lambda: storage.put_once("x", b""),
    ]


def test_a_service_that_is_away_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with _HangsUp() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        for attempt in attempts(Storage("b", retry_seconds=0.2)):
            with pytest.raises(StorageError, match="did not answer") as error:
                attempt()
            assert error.value.transient


def test_an_emulator_that_has_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{_closed_port()}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)

    for attempt in attempts(Storage("b", retry_seconds=1e9)):
        with pytest.raises(StorageError, match=f"nothing listens at {url} .*emulator start"):
            attempt()


def test_a_service_that_keeps_failing_is_a_transient_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with _Answers(503, "backend error") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        with pytest.raises(StorageError) as error:
            Storage("b", retry_seconds=0.2).put("x", b"")

    assert error.value.transient


@pytest.mark.parametrize(
    "host", [None, "", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://x.y"]
)
def test_an_endpoint_on_loopback_or_over_https_is_accepted(host: str | None) -> None:
    check_emulator_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "http://10.0.0.1:1",
        "http://example.com",
        "http://127.0.0.1.example.com",
        "127.0.0.1:9000",
        "http://127.0.0.1:99999",
        "http://[::1",
    ],
)
def test_an_endpoint_that_leaks_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)

    with pytest.raises(ConfigError, match="STORAGE_EMULATOR_HOST=") as error:
        Storage("b")

    assert host in str(error.value)


@pytest.mark.parametrize("name", ["-a", "a-", "A", "a/b", ""])
def test_what_no_bucket_can_be_called_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"bucket {name}: no bucket can have this name"):
        Storage(name)


def test_every_exception_of_the_libraries_is_translated() -> None:
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth

    families = (api.GoogleAPIError, auth.GoogleAuthError)
    classes = [c for f in families for c in (f, *_descendants(f))]

    assert len(classes) > 40
    for cls in classes:
        assert any(base in _meanings() for base in cls.__mro__), cls


def test_our_own_bugs_are_not_translated(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), translated("tried", storage):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("gs://b/p/q", ("b", "p/q")), ("gs://b", ("b", "")), ("gs://b/", ("b", ""))],
)
def test_a_gs_uri_is_split(uri: str, expected: tuple[str, str]) -> None:
    assert parse_uri(uri) == expected


@pytest.mark.parametrize("uri", ["", "b/p", "s3://b/p", "gs:/b/p", "gs://", "gs:///p"])
def test_what_is_no_gs_uri_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="gs://BUCKET/PATH"):
        parse_uri(uri)


# ---------------------------------------------------------------------- what a run leaves


def _manifest(storage: Storage, names: list[str]) -> dict[str, object]:
    objects = []
    for name in names:
        info = storage.put(name, name.encode())
        objects.append(
            {
                "bucket": storage.bucket,
                "name": name,
                "size": info.size,
                "md5": info.md5,
                "crc32c": info.crc32c,
                "generation": info.generation,
            }
        )
    return {"version": 1, "run_id": PATHS.run_id, "attempt": 1, "objects": objects}


RESULTS = [
    PATHS.log(1),
    PATHS.journal(1),
    f"mlflow-gce/experiments/e/{PATHS.run_id}/artifacts/model.pt",
    f"mlflow-gce/experiments/e/models/{MODEL}/artifacts/MLmodel",
    f"mlflow-gce/experiments/e/models/{MODEL}/artifacts/data/weights",
    "elsewhere/file",
    "top",
]


def test_a_bucket_that_holds_everything_is_proven(storage: Storage) -> None:
    manifest = _manifest(storage, RESULTS)
    storage.put(f"mlflow-gce/experiments/e/{PATHS.run_id}/artifacts/more", b"")

    assert storage.verify(manifest) == []


def test_all_that_is_missing_or_different_is_listed(storage: Storage) -> None:
    manifest = _manifest(storage, RESULTS)
    storage.delete(PATHS.journal(1))
    storage.put(PATHS.log(1), b"shorter")
    storage.put("top", b"pot")

    assert storage.verify(manifest) == [
        f"gs://{storage.bucket}/{PATHS.journal(1)}: missing",
        f"gs://{storage.bucket}/{PATHS.log(1)}: 7 bytes, not {len(PATHS.log(1))}",
        f"gs://{storage.bucket}/top: crc32c 5wBJ1A==, not vkR60Q==",
    ]


def test_md5_serves_where_the_manifest_has_no_crc32c(storage: Storage) -> None:
    manifest = _manifest(storage, ["a/x", "a/y", "a/z"])
    x, y, z = manifest["objects"]  # type: ignore[misc]
    for entry in (x, y, z):
        del entry["crc32c"]
    y["md5"] = "0" * 32
    del z["md5"]

    assert [line.split(": ")[1].split(",")[0] for line in storage.verify(manifest)] == [
        f"md5 {hashlib.md5(b'a/y').hexdigest()}",
        "no checksum to compare",
    ]


def test_verification_does_not_ask_for_every_object(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = f"mlflow-gce/experiments/e/{PATHS.run_id}/artifacts"
    manifest = _manifest(storage, [f"{directory}/checkpoints/{i}/c" for i in range(30)])
    with _Counts(storage_url()) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        lines = Storage(storage.bucket).verify(manifest)

    assert lines == []
    assert proxy.count == 1


def test_the_log_is_read_in_order_from_where_the_reader_stands(storage: Storage) -> None:
    for number in (1, 2, 3, 5):
        storage.put(PATHS.log(number), b"piece %d" % number)

    assert storage.read_log(PATHS, 0, limit=2) == [(1, b"piece 1"), (2, b"piece 2")]
    assert storage.read_log(PATHS, 2) == [(3, b"piece 3")]
    assert storage.read_log(PATHS, 3) == []
    storage.put(PATHS.log(4), b"")
    assert [number for number, _ in storage.read_log(PATHS, 3)] == [4, 5]


def test_the_journal_is_read_as_records_and_a_torn_line_hides_none(storage: Storage) -> None:
    storage.put(PATHS.journal(1), b'{"seq": 1}\n{"seq": 2, "pa\n\n{"seq": 3}\n7\n')

    assert storage.read_journal(PATHS, 0) == [
        (1, [{"seq": 1}, {"unreadable": '{"seq": 2, "pa'}, {"seq": 3}, {"unreadable": "7"}])
    ]


# ---------------------------------------------------------------------- servers that misbehave


def storage_url() -> str:
    import os

    return os.environ["STORAGE_EMULATOR_HOST"]


def _closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _descendants(cls: type) -> list[type]:
    return [d for c in cls.__subclasses__() for d in (c, *_descendants(c))]


class _Server:
    """An HTTP server on a loopback port, for the length of a `with` block."""

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.answer(self, body)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def reply(self, handler: BaseHTTPRequestHandler, code: int, data: bytes) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


class _HangsUp(_Server):
    """Closes every connection without an answer."""

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.close_connection = True


class _Answers(_Server):
    """Answers every request with one error."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.body = f'{{"error": {{"code": {code}, "message": "{message}"}}}}'.encode()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.reply(handler, self.code, self.body)


class _Proxy(_Server):
    def __init__(self, upstream: str) -> None:
        self.upstream = upstream

    def forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        import requests

        headers = {"Content-Type": handler.headers.get("Content-Type", "")}
        response = requests.request(
            handler.command, self.upstream + handler.path, data=body, headers=headers, timeout=10
        )
        return response.status_code, response.content


class _LosesFirstReply(_Proxy):
    """Lets the first upload take effect, and closes the connection instead of answering."""

    lost = 0

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        code, data = self.forward(handler, body)
        if handler.command == "POST" and not self.lost:
            self.lost += 1
            handler.close_connection = True
            return
        self.reply(handler, code, data)


class _Counts(_Proxy):
    count = 0

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.count += 1
        self.reply(handler, *self.forward(handler, body))
