"""A disk that runs full: told before, refused cleanly, and the metrics go on."""

from __future__ import annotations

import errno
import io
import os
import resource
from collections import namedtuple
from pathlib import Path

import pytest

from gce_backend.agent import disk as disk_module
from gce_backend.agent import spool as spool_module
from gce_backend.agent.disk import DiskWatch, Reserve
from gce_backend.agent.errors import RelayError
from gce_backend.agent.journal import Journal
from gce_backend.agent.spool import Spool
from gce_backend.agent.state import State

from .instance import TestInstance

Usage = namedtuple("Usage", "total used free")
GB = 1024**3


def test_it_is_told_once_before_it_is_full_and_once_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [5 * GB]
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda path: Usage(50 * GB, 0, free[0]))
    told: list[str] = []
    watch = DiskWatch(tmp_path, told.append)

    for free[0] in (5 * GB, int(1.5 * GB), GB, int(2.5 * GB), 4 * GB, 4 * GB):
        watch.look()

    assert told == [
        "1.5 GB of the instance's 50 GB disk are left; machine.disk_gb makes it larger",
        "",
    ]


def test_the_journal_has_a_reserve_for_when_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "RESERVE_BYTES", 4096)
    reserve = Reserve(tmp_path / "reserve")
    reserve.set_aside()
    journal = Journal(tmp_path / "journal.jsonl", on_full=reserve.release)
    write = os.write
    full = [True]

    def refusing(descriptor: int, data: bytes) -> int:
        """As on a full disk, until the reserve is gone."""
        if full[0] and (tmp_path / "reserve").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr("gce_backend.agent.journal.os.write", refusing)
    journal.append("runs/log-metric", "POST", {"key": "loss"})
    monkeypatch.undo()
    journal.close()

    assert not (tmp_path / "reserve").exists()
    assert [record["seq"] for record in journal.records()] == [1]


def test_what_must_be_remembered_has_the_reserve_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "RESERVE_BYTES", 4096)
    state = State(tmp_path)
    state.reserve.set_aside()
    write = os.fsync

    def refusing(descriptor: int) -> None:
        """As on a full disk, until the reserve is gone."""
        if (tmp_path / "reserve").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor)

    monkeypatch.setattr("gce_backend.agent.files.os.fsync", refusing)
    state.memory.port = 7
    state.save()

    assert State(tmp_path).memory.port == 7
    written = (tmp_path / "state.json").stat().st_ino
    state.save()  # nothing new: no room is needed
    assert (tmp_path / "state.json").stat().st_ino == written


@pytest.mark.flow
def test_a_disk_that_takes_nothing_keeps_nobody_from_collecting(instance: TestInstance) -> None:
    instance.submit("while [ ! -e enough ]; do sleep 0.05; done; echo 1 > gain; exit 3")
    instance.start()
    instance.wait_for_phase("running")
    assert instance.process is not None
    for name in ("state.json", "status.json"):  # as it writes them
        (instance.state / f".{name}.{instance.process.pid}.tmp").mkdir()
    (instance.state / "work" / "enough").touch()

    status = instance.wait()

    assert (status["end_reason"], status["exit_code"]) == ("exited_nonzero", 3)
    assert status["verified"] and instance.plane.deleted
    assert not (instance.state / "reserve").exists()


def test_a_line_that_the_index_has_no_room_for_is_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it stay before the next one; and the file is looked for at the end."""
    spool = Spool(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    spool.put("b", "first", io.BytesIO(b"1").read)
    size = (tmp_path / "index.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(OSError, match="only 20 of"):
            spool.put("b", "second", io.BytesIO(b"2").read, length=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert spool.refused() == [("b", "second", 1)]
    spool.put("b", "third", io.BytesIO(b"3").read)
    spool.close()
    with (tmp_path / "index.jsonl").open("ab") as index:
        index.write(b"\0\0\n")
    again = Spool(tmp_path)
    assert [entry.name for entry in again.entries()] == ["first", "third"]
    assert again.refused() == [("b", "second", 1)]
    again.close()


def test_a_file_that_does_not_fit_is_given_up_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of unknown length, or while something else fills the disk as well."""
    spool = Spool(tmp_path)
    free = [300 * 1024**2]
    monkeypatch.setattr(spool_module.shutil, "disk_usage", lambda path: Usage(GB, 0, free[0]))
    monkeypatch.setattr(spool_module, "LOW_WATER_BYTES", 0)
    taken = []

    def read(amount: int) -> bytes:
        taken.append(amount)
        free[0] -= amount
        return b"x" * amount

    with pytest.raises(RelayError, match="the instance's disk is full: a"):
        spool.put("b", "a", read)

    assert sum(taken) < 80 * 1024**2
    assert not list(tmp_path.glob(".*.tmp"))
    assert spool.refused() == [("b", "a", None)]
    spool.close()
