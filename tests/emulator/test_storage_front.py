"""The storage front where it is narrower than the server behind it: names, ways in, sources."""

from __future__ import annotations

import urllib.parse
from pathlib import Path

import pytest
import requests
from google.api_core.exceptions import NotFound
from google.cloud import storage

from gce_backend.emulator import Emulator, Fault

from .test_storage import TEXT, bucket, stored, upload

__all__ = ["bucket"]  # the fixture


def current(emulator: Emulator, name: str) -> dict[str, str]:
    """The object's resource now."""
    url = f"{emulator.storage_url}/storage/v1/b/bucket/o/{name}"
    found: dict[str, str] = requests.get(url, timeout=30).json()
    return found


@pytest.mark.parametrize("parameter", ["ifSourceGenerationMatch", "ifSourceMetagenerationMatch"])
def test_a_copy_of_what_has_changed_is_a_412(emulator: Emulator, parameter: str) -> None:
    upload(emulator, "changed")
    url = f"{emulator.storage_url}/storage/v1/b/bucket/o/changed/rewriteTo/b/bucket/o/copied"
    answer = requests.post(url, params={parameter: "5"}, json={}, timeout=30)

    assert answer.status_code == 412
    assert stored(emulator, "copied").status_code == 404


def test_a_generation_that_is_not_there_any_more_is_no_source(
    emulator: Emulator, bucket: storage.Bucket
) -> None:
    blob = bucket.blob("source")
    blob.upload_from_string("x")
    with pytest.raises(NotFound):
        bucket.copy_blob(blob, bucket, "of-old", source_generation=5)
    bucket.copy_blob(blob, bucket, "of-new", source_generation=blob.generation)

    assert bucket.blob("of-new").exists() and not bucket.blob("of-old").exists()


def test_a_resumable_upload_whose_last_reply_was_lost_is_told_of_again(
    emulator: Emulator,
) -> None:
    url = f"{emulator.storage_url}/upload/storage/v1/b/bucket/o?uploadType=resumable&name=unheard"
    session = requests.post(url, json={}, timeout=30).headers["Location"]
    whole = {"Content-Range": f"bytes 0-{len(TEXT) - 1}/{len(TEXT)}"}
    emulator.inject(Fault("reply_lost_after", "storage.objects.insert", "bucket/unheard"))
    with pytest.raises(requests.ConnectionError):
        requests.put(session, data=TEXT, headers=whole, timeout=30)
    asked = requests.put(session, headers={"Content-Range": f"bytes */{len(TEXT)}"}, timeout=30)
    again = requests.put(session, data=TEXT, headers=whole, timeout=30)
    emulator.inject(Fault("forbidden", "storage.objects.insert", "bucket/unheard"))
    struck = requests.put(session, data=TEXT, headers=whole, timeout=30)

    assert (asked.status_code, again.status_code, struck.status_code) == (200, 200, 403)
    assert asked.json() == again.json()
    assert asked.json()["generation"] == current(emulator, "unheard")["generation"]


LARGE = 17 * 1024 * 1024  # beyond what goes through the server


@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize("name", ["../../out", "a/../../../out", "../x/out", "a/./out"])
def test_a_name_that_leads_out_of_the_bucket_is_refused(
    emulator: Emulator, name: str, size: int
) -> None:
    before = sorted(emulator.root.rglob("*"))
    by_query = requests.post(
        f"{emulator.storage_url}/upload/storage/v1/b/bucket/o",
        params={"uploadType": "media", "name": name},
        data=bytes(size),
        timeout=30,
    )
    by_metadata = upload(emulator, name, bytes(size))
    quoted = urllib.parse.quote(name, safe="")
    read = stored(emulator, quoted)
    into = f"{emulator.storage_url}/storage/v1/b/bucket/o/x/rewriteTo/b/bucket/o/{quoted}"
    written = requests.post(into, json={}, timeout=30)

    assert {each.status_code for each in (by_query, by_metadata, read, written)} == {501}
    assert sorted(emulator.root.rglob("*")) == before


def test_a_bucket_that_leads_elsewhere_is_refused(emulator: Emulator) -> None:
    url = f"{emulator.storage_url}/upload/storage/v1/b/..%2Fb/o?uploadType=media&name=out"
    answer = requests.post(url, data=bytes(LARGE), timeout=30)

    assert answer.status_code == 501
    assert not (emulator.root / "b").exists()


def test_objects_are_composed_of_the_buckets_own_only(
    emulator: Emulator, bucket: storage.Bucket
) -> None:
    parts = [bucket.blob("part-1"), bucket.blob("part-2")]
    for part in parts:
        part.upload_from_string(part.name)
    bucket.blob("whole").compose(parts)
    answer = requests.post(
        f"{emulator.storage_url}/storage/v1/b/bucket/o/whole/compose",
        json={"sourceObjects": [{"name": "../../holder.json"}]},
        timeout=30,
    )

    assert answer.status_code == 501
    assert bucket.blob("whole").download_as_bytes() == b"part-1part-2"


def test_a_large_object_may_have_empty_parts_in_its_name(emulator: Emulator) -> None:
    answer = upload(emulator, "/top//below", bytes(LARGE))

    assert answer.status_code == 200
    assert not Path("/top").exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "batch/storage/v1"), ("PUT", "bucket/seen"), ("POST", "_internal/reseed")],
)
def test_ways_in_that_no_check_looks_at_are_closed(
    emulator: Emulator, method: str, path: str
) -> None:
    answer = requests.request(method, f"{emulator.storage_url}/{path}", data=b"x", timeout=30)

    assert answer.status_code == 501
    assert answer.json()["error"]["errors"][0]["reason"] == "notImplemented"
