"""The storage front, by google-cloud-storage and by plain HTTP where that does not go."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import socket
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import pytest
import requests
from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from gce_backend.emulator import Emulator, Fault

TEXT = b"hello"
MD5 = base64.b64encode(hashlib.md5(TEXT, usedforsecurity=False).digest()).decode()
CRC32C = base64.b64encode(google_crc32c.Checksum(TEXT).digest()).decode()


@pytest.fixture(scope="module")
def bucket(emulator: Emulator) -> storage.Bucket:
    client = storage.Client(
        project=emulator.project,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": emulator.storage_url},
    )
    return client.bucket("bucket")


def upload(
    emulator: Emulator,
    name: str,
    data: bytes = TEXT,
    params: dict[str, str] | None = None,
    **more: str,
) -> requests.Response:
    """A multipart upload as the API documents it; ``more`` is metadata."""
    metadata = json.dumps({"name": name, **more}).encode()
    parts = (
        b"--xx\r\nContent-Type: application/json\r\n\r\n" + metadata + b"\r\n"
        b"--xx\r\nContent-Type: text/plain\r\n\r\n" + data + b"\r\n--xx--\r\n"
    )
    return requests.post(
        f"{emulator.storage_url}/upload/storage/v1/b/bucket/o",
        params={"uploadType": "multipart"},
        data=parts,
        headers={"Content-Type": "multipart/related; boundary=xx"},
        timeout=30,
    )


def stored(emulator: Emulator, name: str) -> requests.Response:
    url = f"{emulator.storage_url}/storage/v1/b/bucket/o/{name}"
    return requests.get(url, params={"alt": "media"}, timeout=30)


def test_an_upload_comes_back_with_its_checksums(emulator: Emulator) -> None:
    answer = upload(emulator, "a/b").json()

    assert answer["name"] == "a/b"
    assert answer["size"] == "5"
    assert (answer["md5Hash"], answer["crc32c"]) == (MD5, CRC32C)
    assert int(answer["generation"]) > 0
    assert answer["contentType"] == "text/plain"


@pytest.mark.parametrize("kind", ["md5Hash", "crc32c"])
def test_a_wrong_checksum_is_refused_and_leaves_what_was_there(
    emulator: Emulator, kind: str
) -> None:
    upload(emulator, "kept", b"old")
    wrong = {"md5Hash": MD5, "crc32c": CRC32C}[kind]
    answer = upload(emulator, "kept", b"new", **{kind: wrong})

    assert answer.status_code == 400
    assert stored(emulator, "kept").content == b"old"


def test_content_that_looks_like_a_boundary_arrives_whole(emulator: Emulator) -> None:
    data = b"\r\n--x\r\n--yy\n--" * 100_000 + b"\r\n"
    upload(emulator, "tricky", data)

    assert stored(emulator, "tricky").content == data


def test_bare_line_feeds_and_quoted_boundaries_are_taken(emulator: Emulator) -> None:
    data = b'--=a=\nContent-Type: application/json\n\n{"name": "lf"}\n--=a=\n\nhello\n--=a=--'
    answer = requests.post(
        f"{emulator.storage_url}/upload/storage/v1/b/bucket/o?uploadType=multipart",
        data=data,
        headers={"Content-Type": "multipart/related; boundary='=a='"},
        timeout=30,
    )

    assert answer.json()["md5Hash"] == MD5


def test_a_generation_can_be_demanded_at_upload_and_delete(bucket: storage.Bucket) -> None:
    blob = bucket.blob("once")
    blob.upload_from_string("1", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket.blob("once").upload_from_string("2", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket.blob("once").delete(if_generation_match=1)

    bucket.blob("once").delete(if_generation_match=blob.generation)

    with pytest.raises(NotFound):
        bucket.blob("once").reload()


def test_a_large_file_takes_the_resumable_way_and_comes_back(
    bucket: storage.Bucket, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(20_000_000))
    blob = bucket.blob("large file ü", chunk_size=4 * 1024 * 1024)
    blob.metadata = {"run": "a"}
    blob.upload_from_filename(source)
    blob.reload()
    blob.download_to_filename(target)

    assert target.read_bytes() == source.read_bytes()
    assert blob.size == 20_000_000
    assert blob.metadata == {"run": "a"}
    assert (
        blob.md5_hash
        == base64.b64encode(
            hashlib.md5(source.read_bytes(), usedforsecurity=False).digest()
        ).decode()
    )


def test_ranges_and_listings(bucket: storage.Bucket) -> None:
    for name in ("l/1", "l/2", "l/3"):
        bucket.blob(name).upload_from_string(f"text of {name}")

    assert bucket.blob("l/2").download_as_bytes(start=8, end=10) == b"l/2"
    assert [b.name for b in bucket.list_blobs(prefix="l/", start_offset="l/2")] == ["l/2", "l/3"]
    assert [b.name for b in bucket.list_blobs(prefix="l/", page_size=1)] == ["l/1", "l/2", "l/3"]


def test_a_copy_within_the_bucket(bucket: storage.Bucket) -> None:
    blob = bucket.blob("from")
    blob.upload_from_string("x")
    bucket.copy_blob(blob, bucket, "to")

    assert bucket.blob("to").download_as_bytes() == b"x"


def test_a_missing_bucket_is_a_404(emulator: Emulator) -> None:
    url = f"{emulator.storage_url}/upload/storage/v1/b/nowhere/o?uploadType=media&name=x"

    assert requests.post(url, data=b"x", timeout=30).status_code == 404


def test_a_delete_is_a_204_and_a_bogus_token_a_401(emulator: Emulator) -> None:
    upload(emulator, "gone")
    url = f"{emulator.storage_url}/storage/v1/b/bucket/o/gone"
    bogus = requests.delete(url, headers={"Authorization": "Bearer x"}, timeout=30)
    deleted = requests.delete(url, timeout=30)

    assert (bogus.status_code, deleted.status_code) == (401, 204)


def test_a_bucket_can_refuse_and_recover(emulator: Emulator, bucket: storage.Bucket) -> None:
    emulator.inject(Fault("forbidden", "storage.objects.insert", "bucket/runs/*", times=None))
    with pytest.raises(Forbidden):
        bucket.blob("runs/1").upload_from_string("x")
    bucket.blob("other").upload_from_string("x")
    emulator.clear_faults()

    bucket.blob("runs/1").upload_from_string("x")


def test_a_lost_reply_leaves_the_object(emulator: Emulator) -> None:
    emulator.inject(Fault("reply_lost_after", "storage.objects.insert", "bucket*"))
    with pytest.raises(requests.ConnectionError):
        upload(emulator, "arrived")

    assert stored(emulator, "arrived").content == TEXT


def test_an_interrupted_resumable_upload_goes_on_where_it_was(emulator: Emulator) -> None:
    data = os.urandom(600_000)
    url = f"{emulator.storage_url}/upload/storage/v1/b/bucket/o?uploadType=resumable&name=resumed"
    session = requests.post(url, json={}, timeout=30).headers["Location"]
    first = requests.put(
        session,
        data=data[: 2 * 262144],
        headers={"Content-Range": f"bytes 0-{2 * 262144 - 1}/600000"},
        timeout=30,
    )
    asked = requests.put(session, headers={"Content-Range": "bytes */600000"}, timeout=30)
    last = requests.put(
        session,
        data=data[2 * 262144 :],
        headers={"Content-Range": f"bytes {2 * 262144}-599999/600000"},
        timeout=30,
    )

    assert first.status_code == asked.status_code == 308
    assert asked.headers["Range"] == f"bytes=0-{2 * 262144 - 1}"
    assert last.json()["size"] == "600000"
    assert stored(emulator, "resumed").content == data


@pytest.mark.flow
def test_a_gigabyte_goes_through_in_bounded_memory(emulator: Emulator, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(10**9)
    url = f"{emulator.storage_url}/upload/storage/v1/b/bucket/o?uploadType=media&name=big"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    servers_before = servers_peak_kilobytes()
    with big.open("rb") as file:
        answer = requests.post(url, data=file, timeout=120)
    with requests.get(answer.json()["mediaLink"], stream=True, timeout=120) as download:
        size = sum(len(piece) for piece in download.iter_content(1 << 20))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert size == 10**9
    assert grown < 100_000  # kilobytes
    assert servers_peak_kilobytes() - servers_before < 200_000


def leave_a_download(emulator: Emulator) -> None:
    upload(emulator, "long", bytes(50_000_000))
    url = f"{emulator.storage_url}/storage/v1/b/bucket/o/long"
    with requests.get(url, params={"alt": "media"}, stream=True, timeout=30) as download:
        next(download.iter_content(1000))


def leave_an_upload(emulator: Emulator) -> None:
    address = urllib.parse.urlsplit(emulator.storage_url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            b"POST /upload/storage/v1/b/bucket/o?uploadType=media&name=half HTTP/1.1\r\n"
            b"Host: localhost\r\nContent-Length: 50000000\r\n\r\n" + bytes(1_000_000)
        )


@pytest.mark.parametrize("leave", [leave_a_download, leave_an_upload])
def test_a_client_that_leaves_in_the_middle_is_nobodys_error(
    emulator: Emulator, caplog: pytest.LogCaptureFixture, leave: Callable[[Emulator], None]
) -> None:
    leave(emulator)
    end = time.monotonic() + 30
    while emulator.calls[-1].status != 499:
        assert time.monotonic() < end, "the record says that the client left"
        time.sleep(0.05)
    upload(emulator, "next")

    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def servers_peak_kilobytes() -> int:
    """Of the fake-gcs-servers that this process has started, summed.

    Only its growth says something: tests before this one have sent through them what they hold.
    """
    peaks = []
    for entry in Path("/proc").iterdir():
        status = _read(entry / "status")
        if entry.name.isdigit() and "fake-gcs" in _read(entry / "comm") and status:
            fields = dict(line.split(":", 1) for line in status.splitlines())
            if int(fields["PPid"]) == os.getpid() and "VmHWM" in fields:
                peaks.append(int(fields["VmHWM"].split()[0]))
    assert peaks, "no server"
    return sum(peaks)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
