"""The root directory: what is written there, who holds it, and what a dead holder left."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import leftovers, limits

_STATE = "holder.json"
# What does not outlive the emulator; buckets do.
_FLEETING = ("instances", "spool")


@dataclass(frozen=True)
class Holder:
    """The emulator that has a root: told from an unrelated process by its start time.

    Attributes:
        started: clock ticks since boot.
        groups: directories of its control groups, where it could make them.
    """

    pid: int
    started: int
    mark: str
    groups: list[str] = field(default_factory=list)

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


def claim(root: Path) -> Holder:
    """Take the root, after ending what a dead holder left; gives the new holder, this process.

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
    pid, mark = os.getpid(), secrets.token_hex(8)
    groups = [str(place) for place in limits.places(mark, limits.hierarchies())]
    state = Holder(pid, leftovers.start_time(pid), mark, groups)
    file = root / f"{_STATE}.new"
    file.write_text(json.dumps(asdict(state), indent=1))
    file.replace(root / _STATE)
    return state


def clean(root: Path) -> None:
    """End and remove what a dead holder left; buckets stay."""
    before = holder(root)
    if before is not None:
        leftovers.kill_all(lambda: leftovers.marked(before.mark))
        for group in before.groups:
            with contextlib.suppress(OSError):  # nothing is in it; an empty group does no harm
                leftovers.remove_group(group)
    release(root)


def release(root: Path) -> None:
    """The emulator has stopped; buckets stay."""
    for name in _FLEETING:
        shutil.rmtree(root / name, ignore_errors=True)
    (root / _STATE).unlink(missing_ok=True)


class Watchdog:
    """A process that cleans up if this one is killed; see ``leftovers.py``."""

    def __init__(self, held: Holder, doomed: list[Path]) -> None:
        reading, self._pipe = os.pipe()
        task = json.dumps([held.mark, [str(path) for path in doomed], held.groups])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", leftovers.__file__, task],
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
