"""A disk that runs full: told before, refused cleanly, and the metrics go on."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from gce_backend.agent import disk as disk_module
from gce_backend.agent import spool as spool_module
from gce_backend.agent.disk import DiskWatch, Reserve
from gce_backend.agent.errors import RelayError
from gce_backend.agent.journal import Journal
from gce_backend.agent.spool import Spool

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
