"""The root directory: what is written there, who holds it, and what a dead holder left."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from . import leftovers

_STATE = "holder.json"
# What does not outlive the emulator; buckets do.
_FLEETING = ("instances", "spool")


@dataclass(frozen=True)
class Holder:
    """The emulator that has a root: told from an unrelated process by its start time."""

    pid: int
    started: int  # clock ticks since boot
    mark: str

    @property
    def is_alive(self) -> bool:
        return leftovers.start_time(self.pid) == self.started != 0


class RootInUse(RuntimeError):
    """Another emulator runs on this root."""


def holder(root: Path) -> Holder | None:
    """Who last wrote itself down here, dead or alive."""
    try:
        return Holder(**json.loads((root / _STATE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def claim(root: Path) -> str:
    """Take the root, after ending what a dead holder left; gives the new mark.

    Raises:
        RootInUse: its holder is alive.
    """
    root.mkdir(parents=True, exist_ok=True)
    before = holder(root)
    if before is not None and before.is_alive:
        raise RootInUse(
            f"an emulator runs on {root} already (pid {before.pid}); "
            "stop it: mlflow-gce emulator stop"
        )
    clean(root)
    mark = secrets.token_hex(8)
    _write(root, mark)
    return mark


def clean(root: Path) -> None:
    """End and remove what a dead holder left; buckets stay."""
    before = holder(root)
    if before is not None:
        leftovers.kill_all(lambda: leftovers.marked(before.mark))
    release(root)


def _write(root: Path, mark: str) -> None:
    """Write this process down as the holder."""
    pid = os.getpid()
    state = Holder(pid, leftovers.start_time(pid), mark)
    file = root / f"{_STATE}.new"
    file.write_text(json.dumps(asdict(state), indent=1))
    file.replace(root / _STATE)


def release(root: Path) -> None:
    """The emulator has stopped; buckets stay."""
    for name in _FLEETING:
        shutil.rmtree(root / name, ignore_errors=True)
    (root / _STATE).unlink(missing_ok=True)


class Watchdog:
    """A process that cleans up if this one is killed; see ``leftovers.py``."""

    def __init__(self, mark: str, doomed: list[Path]) -> None:
        reading, self._pipe = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", leftovers.__file__, mark, *map(str, doomed)],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(reading)

    def dismiss(self) -> None:
        leftovers.farewell(self._pipe)
        os.close(self._pipe)
        self._process.wait()
