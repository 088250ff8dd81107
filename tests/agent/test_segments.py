"""Growing files as immutable pieces, over restarts."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from gce_backend.agent.errors import CloudError
from gce_backend.agent.metadata import MetadataServer
from gce_backend.agent.segments import MAX_PIECE_BYTES, Segments
from gce_backend.agent.storage import Storage

from .cloud import Bucket, ControlPlane
from .front import Front


class Sender:
    def __init__(self, storage: Storage, bucket: Bucket, file: Path) -> None:
        self.storage, self.bucket, self.file = storage, bucket, file

    def start(self, first: int = 1, whole_lines: bool = False) -> Segments:
        return Segments(
            self.storage,
            self.bucket.name,
            self.file,
            lambda number: f"log/{number:06d}",
            first=lambda: first,
            whole_lines=whole_lines,
        )

    def write(self, data: bytes) -> None:
        with self.file.open("ab") as file:
            file.write(data)


@pytest.fixture
def sender(tmp_path: Path, plane: ControlPlane, front: Front, bucket: Bucket) -> Sender:
    return Sender(Storage(MetadataServer(plane.address), front.url), bucket, tmp_path / "log")


def soon() -> float:
    return time.time() + 10


def test_pieces_joined_are_the_file(sender: Sender) -> None:
    segments = sender.start()
    for part in (b"one\n", b"two", b" three\n"):
        sender.write(part)
        segments.send_new(soon())
    segments.send_new(soon())

    assert sender.bucket.names("log/") == ["log/000001", "log/000002", "log/000003"]
    assert sender.bucket.joined("log/") == b"one\ntwo three\n"
    assert segments.count == 3 and segments.pending_bytes == 0


def test_pieces_are_bounded(sender: Sender) -> None:
    sender.write(b"x" * (2 * MAX_PIECE_BYTES + 5))
    segments = sender.start()
    segments.send_new(soon())

    assert [item.size for item in segments.stored] == [MAX_PIECE_BYTES, MAX_PIECE_BYTES, 5]


def test_what_grows_faster_than_it_is_sent_is_sent_as_far_as_it_was(
    sender: Sender, front: Front
) -> None:
    sender.write(b"one\n")

    def grow(method: str, path: str) -> None:
        if len(front.requests) < 50:  # else it would never end
            sender.write(b"more\n")

    front.refuse = grow
    sender.start().send_new(soon())

    assert sender.bucket.get("log/000001") == b"one\n"
    assert len(sender.bucket.names("log/")) == 1


def test_whole_lines_are_never_cut(sender: Sender) -> None:
    long_line = b"y" * (MAX_PIECE_BYTES + 10) + b"\n"
    sender.write(b"short\n" + long_line + b"next\nhalf")
    segments = sender.start(whole_lines=True)
    segments.send_new(soon())

    pieces = [sender.bucket.get(name) for name in sender.bucket.names("log/")]
    assert pieces == [b"short\n", long_line, b"next\n"]
    assert segments.pending_bytes == 4


def test_a_restart_sends_nothing_twice_and_continues(sender: Sender, front: Front) -> None:
    sender.write(b"one\n")
    sender.start(first=5).send_new(soon())
    sender.write(b"two\n")
    uploads = len([path for method, path in front.requests if method == "POST"])
    again = sender.start(first=99)
    again.send_new(soon())

    assert sender.bucket.names("log/") == ["log/000005", "log/000006"]
    assert len([path for method, path in front.requests if method == "POST"]) == uploads + 1
    assert [item.size for item in again.stored] == [4, 4] and again.count == 6


def test_a_piece_begun_before_a_crash_is_sent_with_the_same_bytes(
    sender: Sender, front: Front
) -> None:
    sender.write(b"one\n")
    front.refuse = lambda method, path: 503 if method == "POST" else None
    with pytest.raises(CloudError):
        sender.start().send_new(time.time())
    front.refuse = lambda method, path: None
    sender.write(b"two\n")
    sender.start().send_new(soon())

    assert sender.bucket.get("log/000001") == b"one\n"
    assert sender.bucket.get("log/000002") == b"two\n"


def test_a_piece_that_was_begun_survives_a_power_cut(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that fails takes along what the disk was not made to keep: were that bytes that
    have a number, others could never be sent under it."""
    kept: dict[int, int] = {}  # by inode: bytes that are on the disk

    def sync(descriptor: int) -> None:
        state = os.fstat(descriptor)
        kept[state.st_ino] = state.st_size

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    sender.write(b"one\n")
    sender.start().send_new(soon())
    sender.write(b"lost\n")

    os.truncate(sender.file, kept.get(sender.file.stat().st_ino, 0))
    sender.write(b"written anew\n")
    sender.start().send_new(soon())

    assert sender.bucket.joined("log/") == b"one\nwritten anew\n"


def test_a_piece_that_begins_writes_its_own_end_and_nothing_of_the_others(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day has 86,400 of them. An end that was cut short was of a piece that was never sent."""
    ends = sender.file.with_name("log.ends.pieces")
    segments = sender.start(first=4)
    for _ in range(3):
        sender.write(b"x\n")
        segments.send_new(soon())
    assert json.loads(sender.file.with_name("log.pieces").read_text()) == {"first": 4}
    assert ends.read_bytes() == b"2\n4\n6\n"
    with ends.open("ab") as file:
        file.write(b"1")
    sender.write(b"y\n")
    again = sender.start(first=99)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: 1)
        with pytest.raises(OSError, match="only 1 of 2 bytes"):
            again.send_new(soon())

    again.send_new(soon())

    assert sender.bucket.joined("log/") == b"x\nx\nx\ny\n"
    assert ends.read_bytes() == b"2\n4\n6\n8\n" and again.count == 7


@pytest.mark.parametrize("failing", [0, 1])
def test_a_piece_that_the_disk_does_not_keep_is_not_begun(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Neither its bytes nor its end: after a restart it would be cut differently."""
    sync, calls = os.fdatasync, iter(range(100))

    def fail_once(descriptor: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail_once)
    segments = sender.start()
    sender.write(b"one\n")
    with pytest.raises(OSError, match="Input/output"):
        segments.send_new(soon())
    sender.write(b"two\n")
    segments.send_new(soon())
    sender.write(b"three\n")
    sender.start().send_new(soon())

    assert sender.bucket.joined("log/") == b"one\ntwo\nthree\n"


def test_a_lost_reply_counts_as_sent(sender: Sender, front: Front) -> None:
    sender.write(b"one\n")
    replies = iter([True])
    front.lose_reply = lambda method, path: method == "POST" and next(replies, False)
    segments = sender.start()
    segments.send_new(soon())

    assert segments.count == 1
    assert segments.stored[0].crc32c and segments.stored[0].generation


def test_a_name_taken_by_other_bytes_is_an_error_and_stays(sender: Sender) -> None:
    sender.bucket.put("log/000001", b"somebody else's")
    sender.write(b"one\n")

    with pytest.raises(CloudError, match="holds other bytes"):
        sender.start().send_new(time.time() + 1)

    assert sender.bucket.get("log/000001") == b"somebody else's"
