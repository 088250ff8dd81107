"""The agent's own Cloud Storage client against the real fake-gcs-server, and a front that errs."""

from __future__ import annotations

import hashlib
import http.client
import io
import time
from pathlib import Path

import pytest

from gce_backend.agent.endpoint import TRANSIENT, Endpoint, Reply, retrying
from gce_backend.agent.errors import CloudError
from gce_backend.agent.metadata import MetadataServer
from gce_backend.agent.storage import CHUNK_BYTES, MULTIPART_MAX_BYTES, ObjectStream, Storage

from .cloud import Bucket, ControlPlane
from .front import Front

pytestmark = pytest.mark.flow  # real processes and servers


@pytest.fixture
def storage(plane: ControlPlane, front: Front) -> Storage:
    return Storage(MetadataServer(plane.address), front.url)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def a_file(directory: Path, size: int) -> tuple[Path, str]:
    path = directory / "file"
    data = b"".join(index.to_bytes(8, "big") for index in range(size // 8 + 1))[:size]
    path.write_bytes(data)
    return path, md5(data)


def test_what_is_put_is_there_with_its_checksums(storage: Storage, bucket: Bucket) -> None:
    stored = storage.put(bucket.name, "a/ü b?#%2F", b"data", md5=md5(b"data"))

    assert (stored.size, stored.md5, stored.name) == (4, md5(b"data"), "a/ü b?#%2F")
    assert stored.crc32c and stored.generation
    assert storage.get(bucket.name, "a/ü b?#%2F") == b"data"
    assert storage.stat(bucket.name, "a/ü b?#%2F") == stored


def test_what_is_not_there_is_404_or_none(storage: Storage, bucket: Bucket) -> None:
    assert storage.stat(bucket.name, "nothing") is None
    with pytest.raises(CloudError) as caught:
        storage.get(bucket.name, "nothing")
    assert caught.value.status == 404
    storage.delete(bucket.name, "nothing")


def test_only_if_absent_does_not_overwrite(storage: Storage, bucket: Bucket) -> None:
    storage.put(bucket.name, "a", b"1", md5=md5(b"1"), only_if_absent=True)
    with pytest.raises(CloudError) as caught:
        storage.put(bucket.name, "a", b"2", md5=md5(b"2"), only_if_absent=True)

    assert caught.value.status == 412
    assert bucket.get("a") == b"1"


@pytest.mark.parametrize(
    "size",
    [0, 1, MULTIPART_MAX_BYTES, MULTIPART_MAX_BYTES + 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 7],
)
def test_files_of_every_size_arrive_whole(
    storage: Storage, bucket: Bucket, tmp_path: Path, size: int
) -> None:
    path, digest = a_file(tmp_path, size)

    stored = storage.put_file(bucket.name, "file", path, size=size, md5=digest)

    assert (stored.size, stored.md5) == (size, digest)
    sink = io.BytesIO()
    assert storage.download(bucket.name, "file", sink) == size
    assert md5(sink.getvalue()) == digest


def test_other_bytes_than_promised_are_an_error(storage: Storage, bucket: Bucket) -> None:
    with pytest.raises(CloudError):
        storage.put(bucket.name, "a", b"data", md5=md5(b"other data"))


def test_a_resumable_upload_goes_on_after_a_lost_reply(
    storage: Storage, front: Front, bucket: Bucket, tmp_path: Path
) -> None:
    path, digest = a_file(tmp_path, 3 * CHUNK_BYTES)
    lost: list[str] = []

    def lose(method: str, path: str) -> bool:
        if method == "PUT" and not lost:
            lost.append(path)
            return True
        return False

    front.lose_reply = lose
    stored = storage.put_file(bucket.name, "file", path, size=3 * CHUNK_BYTES, md5=digest)

    assert lost and stored.md5 == digest
    assert len([path for method, path in front.requests if method == "PUT"]) == 3 + 1
    assert md5(bucket.get("file")) == digest


@pytest.mark.parametrize("status", [503, 408, 401])
def test_a_resumable_upload_goes_on_after_failures_in_a_row(
    storage: Storage, front: Front, bucket: Bucket, tmp_path: Path, status: int
) -> None:
    """The first is of a chunk, those after it of the question how far it has come."""
    path, digest = a_file(tmp_path, 3 * CHUNK_BYTES)
    puts: list[str] = []

    def refuse(method: str, path: str) -> int | None:
        if method == "PUT":
            puts.append(path)
            return status if len(puts) in (2, 3, 4) else None
        return None

    front.refuse = refuse
    stored = storage.put_file(bucket.name, "file", path, size=3 * CHUNK_BYTES, md5=digest)

    assert stored.md5 == digest
    assert len(puts) == 3 + 1 + 3
    assert len([path for method, path in front.requests if method == "POST"]) == 1


def test_a_download_that_breaks_off_is_an_error_of_the_cloud() -> None:
    class Response:
        def read(self, amount: int) -> bytes:
            raise http.client.IncompleteRead(b"x", 9)

    with pytest.raises(CloudError, match="the download broke off"):
        ObjectStream(Endpoint("http://localhost"), Response(), 10).read(10)


def test_listings_go_on_over_pages_and_start_where_asked(storage: Storage, bucket: Bucket) -> None:
    for number in range(12):
        bucket.put(f"log/{number:06d}", b"x")
    bucket.put("log/deeper/a", b"x")

    names = [item.name for item in storage.objects(bucket.name, "log/0", start="log/000009")]
    here, directories = storage.list_directory(bucket.name, "log/")

    assert names == ["log/000009", "log/000010", "log/000011"]
    assert len(here) == 12 and directories == ["log/deeper/"]


def test_a_refused_token_is_fetched_anew(
    storage: Storage, front: Front, plane: ControlPlane, bucket: Bucket
) -> None:
    bucket.put("a", b"1")
    refusals = iter([401])
    front.refuse = lambda method, path: next(refusals, None)

    assert retrying(lambda: storage.get(bucket.name, "a"), time.time() + 5) == b"1"


@pytest.mark.parametrize(
    "answer", ["<html>", "[]", "{}", '{"access_token": "t", "expires_in": "soon"}', b"\xff"]
)
def test_a_token_that_is_none_is_an_error_of_the_cloud(
    monkeypatch: pytest.MonkeyPatch, answer: str | bytes
) -> None:
    """Whoever asks in a loop waits for a better answer."""
    metadata = MetadataServer("localhost")
    body = answer.encode() if isinstance(answer, str) else answer
    reply = Reply(200, http.client.HTTPMessage(), body)
    monkeypatch.setattr(metadata._endpoint, "request", lambda *args, **more: reply)

    with pytest.raises(CloudError, match="metadata server: instance/service") as raised:
        metadata.token()

    assert raised.value.status in TRANSIENT


def test_retrying_ends_with_the_last_error_when_time_is_up(
    storage: Storage, front: Front, bucket: Bucket
) -> None:
    front.refuse = lambda method, path: 503
    began = time.monotonic()

    with pytest.raises(CloudError, match="HTTP 503 refused by the test"):
        retrying(lambda: storage.get(bucket.name, "a"), time.time() + 0.5)

    assert 0.4 < time.monotonic() - began < 3


def test_what_cannot_help_is_not_tried_again(
    storage: Storage, front: Front, bucket: Bucket
) -> None:
    front.refuse = lambda method, path: 403

    with pytest.raises(CloudError):
        retrying(lambda: storage.get(bucket.name, "a"), time.time() + 30)

    assert len(front.requests) == 1


def test_no_answer_is_an_error_that_names_the_object_of_the_call(plane: ControlPlane) -> None:
    storage = Storage(MetadataServer(plane.address), "http://127.0.0.1:9")

    with pytest.raises(CloudError, match=r"GET http://127.0.0.1:9/storage/v1/b/b/o/a: no answer"):
        storage.get("b", "a")
