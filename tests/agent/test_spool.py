"""Spool and uploader: artifacts taken in whole, brought to the bucket, newest content last."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gce_backend.agent import spool as spool_module
from gce_backend.agent.errors import RelayError
from gce_backend.agent.metadata import MetadataServer
from gce_backend.agent.spool import Entry, Spool
from gce_backend.agent.storage import Storage
from gce_backend.agent.uploader import THREADS, Uploader

from .cloud import Bucket, ControlPlane, wait_for
from .front import Front


def put(spool: Spool, name: str, data: bytes, bucket: str = "b") -> None:
    spool.put(bucket, name, io.BytesIO(data).read)


@pytest.fixture
def uploading(
    tmp_path: Path, plane: ControlPlane, front: Front
) -> Iterator[tuple[Spool, Uploader, list[str]]]:
    spool, said = Spool(tmp_path / "spool"), list[str]()
    uploader = Uploader(spool, Storage(MetadataServer(plane.address), front.url), said.append)
    uploader.start()
    yield spool, uploader, said
    uploader.stop()
    spool.close()


def test_answers_that_make_no_sense_stop_no_upload(
    uploading: tuple[Spool, Uploader, list[str]], bucket: Bucket, front: Front
) -> None:
    spool, uploader, _ = uploading
    odd = iter(range(2 * THREADS))
    front.refuse = lambda method, path: 200 if next(odd, None) is not None else None
    for number in range(THREADS):
        put(spool, f"{number}", b"x", bucket.name)

    assert uploader.drain(time.time() + 30) == []
    assert len(bucket.names()) == THREADS


def test_a_name_that_no_bucket_takes_stops_no_other(
    uploading: tuple[Spool, Uploader, list[str]], bucket: Bucket
) -> None:
    spool, _, said = uploading
    for number in range(THREADS):
        spool.delete(bucket.name, f"half-\udce4-{number}")
    wait_for(lambda: len(said) >= THREADS, "it is told of each")
    put(spool, "whole", b"y", bucket.name)

    wait_for(lambda: bucket.find("whole"), "the file after them is there")
    assert "will be tried again: 'utf-8' codec" in said[0]


def test_an_entry_has_the_size_and_md5_of_what_came(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, "a", b"data")

    entry = spool.find("b", "a")
    assert entry is not None
    assert (entry.size, entry.md5) == (4, hashlib.md5(b"data").hexdigest())
    assert spool.path(entry.number).read_bytes() == b"data"


def test_entries_survive_a_restart_and_overwritten_files_do_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, "a", b"old")
    put(spool, "a", b"new!")
    put(spool, "gone", b"x")
    spool.delete("b", "gone")
    spool.close()
    (tmp_path / ".99.tmp").write_bytes(b"half of a file")
    with (tmp_path / "index.jsonl").open("ab") as index:
        index.write(b'{"number": 99, "buck')

    again = Spool(tmp_path)
    put(again, "b", b"later")
    assert [(e.name, e.size, e.deleted) for e in again.entries()] == [
        ("a", 4, False),
        ("b", 5, False),
        ("gone", 0, True),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000005", "index.jsonl"]
    assert [e.name for e in Spool(tmp_path).entries()] == ["a", "b", "gone"]


def test_an_entry_whose_bytes_were_dropped_once_uploaded_is_not_pending_again(
    tmp_path: Path,
) -> None:
    """On a full disk that it was uploaded could not be noted; whether it is there, the end asks."""
    spool = Spool(tmp_path)
    put(spool, "a", b"data")
    put(spool, "b", b"here")
    spool.close()
    (tmp_path / "00000001").unlink()

    again = Spool(tmp_path)

    assert [entry.name for entry in again.pending()] == ["b"]
    assert [entry.name for entry in again.entries() if entry.done] == ["a"]


def test_a_client_that_breaks_off_leaves_nothing_but_the_knowledge(tmp_path: Path) -> None:
    def broken(amount: int) -> bytes:
        raise ConnectionError("away")

    spool = Spool(tmp_path)
    for name in ("a", "b", "b"):
        with pytest.raises(ConnectionError):
            spool.put("b", name, broken, length=7)

    assert spool.entries() == []
    assert not list(tmp_path.glob(".*.tmp"))
    restarted = Spool(tmp_path)
    assert sorted(restarted.refused()) == [("b", "a", 7), ("b", "b", 7)]
    put(restarted, "a", b"1")
    assert restarted.refused() == [("b", "b", 7)]
    assert len(list(tmp_path.glob("*.promised"))) == 1


def test_a_file_nobody_changes_any_more_is_taken_in_without_a_copy(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"weights")
    spool = Spool(tmp_path / "spool")
    put(spool, "there", b"known")

    entry = spool.put_file("b", "model.pt", file, link=True)

    assert entry is not None and (entry.size, entry.md5) == (7, hashlib.md5(b"weights").hexdigest())
    assert spool.path(entry.number).samefile(file)
    file.write_bytes(b"known")
    assert spool.put_file("b", "again", file, unless_known=True, link=True) is None


def test_the_same_bytes_are_kept_once_when_asked(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, "a", b"data")

    assert spool.put("b", "workdir/a", io.BytesIO(b"data").read, unless_known=True) is None
    assert [entry.name for entry in spool.entries()] == ["a"]


def test_a_full_disk_drops_uploaded_copies_first_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    put(spool, "done", b"1")
    put(spool, "waiting", b"2")
    done, waiting = spool.entries()
    spool.mark_done(done, None)
    monkeypatch.setattr(spool_module, "LOW_WATER_BYTES", 1 << 60)
    put(spool, "more", b"3")

    assert not spool.path(done.number).exists()
    assert spool.path(waiting.number).read_bytes() == b"2"
    monkeypatch.setattr(spool_module, "FULL_BYTES", 1 << 60)
    with pytest.raises(RelayError, match=r"the instance's disk is full.*machine.disk_gb"):
        put(spool, "too much", b"4")


def test_what_is_put_arrives_and_the_bucket_confirms_it(
    uploading: tuple[Spool, Uploader, list[str]], bucket: Bucket
) -> None:
    spool, uploader, _ = uploading
    for number in range(30):
        put(spool, f"file-{number:02d}", b"%d" % number, bucket.name)

    assert uploader.drain(time.time() + 20) == []
    assert len(bucket.names()) == 30
    assert all(entry.generation and entry.crc32c for entry in spool.entries())


def test_the_newest_content_wins_however_slow_the_bucket_is(
    uploading: tuple[Spool, Uploader, list[str]], front: Front, bucket: Bucket
) -> None:
    spool, uploader, _ = uploading
    hold = threading.Event()
    held = threading.Event()

    def slow(method: str, path: str) -> None:
        if method == "POST" and not held.is_set():
            held.set()
            hold.wait(10)

    front.refuse = slow
    put(spool, "a", b"old", bucket.name)
    assert held.wait(10)
    for number in range(10):
        put(spool, "a", b"new %d" % number, bucket.name)
    hold.set()

    assert uploader.drain(time.time() + 20) == []
    assert bucket.get("a") == b"new 9"
    entry = spool.find(bucket.name, "a")
    assert entry is not None and entry.md5 == hashlib.md5(b"new 9").hexdigest()


def test_many_files_are_not_looked_at_with_every_upload(tmp_path: Path) -> None:
    """Otherwise thousands of small ones take longer to choose among than to upload."""
    spool, count = Spool(tmp_path), 50
    for number in range(count):
        put(spool, f"{number}", b"x")
    looked = 0

    def is_free(entry: Entry) -> bool:
        nonlocal looked
        looked += 1
        return True

    names = []
    while (entry := spool.next_pending(is_free)) is not None:
        names.append(entry.name)
        spool.mark_done(entry, None)

    assert names == [f"{number}" for number in range(count)] and looked == count
    assert not spool.is_pending and spool.pending() == []
    first = spool.find("b", "0")
    assert first is not None
    put(spool, "new", b"x")
    spool.mark_pending(first)
    put(spool, "new", b"y")
    assert [entry.name for entry in spool.pending()] == ["0", "new"]
    assert [entry.name for entry in Spool(tmp_path).pending()] == ["new"]
    spool.close()


def test_a_deleted_artifact_is_deleted_in_the_bucket(
    uploading: tuple[Spool, Uploader, list[str]], bucket: Bucket
) -> None:
    spool, uploader, _ = uploading
    put(spool, "a", b"1", bucket.name)
    wait_for(lambda: bucket.names() == ["a"], "the artifact is in the bucket")
    spool.delete(bucket.name, "a")

    assert uploader.drain(time.time() + 20) == []
    assert bucket.names() == []


def test_a_refusal_is_told_and_tried_again(
    uploading: tuple[Spool, Uploader, list[str]], front: Front, bucket: Bucket
) -> None:
    spool, uploader, said = uploading
    front.refuse = lambda method, path: 403
    put(spool, "a", b"1", bucket.name)
    wait_for(lambda: said, "the refusal is told")

    assert uploader.drain(time.time() + 0.2) != []
    assert f"upload of gs://{bucket.name}/a failed, will be tried again" in said[0]
    assert "refused by the test" in uploader.last_error
    front.refuse = lambda method, path: None
    assert uploader.drain(time.time() + 20) == []
    assert bucket.get("a") == b"1"
