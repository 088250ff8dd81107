"""The root directory: what is written there, who holds it, and what a dead holder left.

Whoever holds it has a lock on a file in it, and so has the watchdog: until both are gone, nobody
else cleans up or begins there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from . import leftovers, limits

ENVIRONMENT = "emulator.json"  # what ``emulator start`` says to ``emulator env``
PATIENCE_SECONDS = 20.0  # longer than a watchdog takes
_STATE = "holder.json"
_LOCK = "lock"
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


@dataclass(frozen=True)
class Claim:
    """A root that is held; ``lock``: an open file, locked for as long as somebody has it open."""

    holder: Holder
    lock: IO[bytes]

    def let_go(self) -> None:
        """Let the next one in, also while a child that was forked has the file open."""
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        self.lock.close()


def claim(root: Path) -> Claim:
    """Take the root for this process, after ending what a dead holder left.

    Raises:
        RootInUse: its holder is alive, or one that starts or ends takes its time.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = (root / _LOCK).open("ab")
    try:
        _take(lock, root)
        return Claim(_begin(root), lock)
    except BaseException:
        lock.close()
        raise


def _take(lock: IO[bytes], root: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        found = holder(root)
        if found is not None and found.is_alive:
            raise RootInUse(
                f"an emulator runs on {root} already (pid {found.pid}); "
                f"stop it: mlflow-gce emulator stop --root {root}"
            )
        if time.monotonic() > deadline:
            raise RootInUse(
                f"an emulator runs on {root} that starts or ends, for {PATIENCE_SECONDS:g} s now; "
                f"see which: fuser -v {root / _LOCK}"
            )
        time.sleep(0.02)


def _begin(root: Path) -> Holder:
    """Write down that this process has the root."""
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
    for name in (ENVIRONMENT, _STATE):
        (root / name).unlink(missing_ok=True)


class Watchdog:
    """A process that cleans up if this one is killed; see ``leftovers.py``."""

    def __init__(self, claim: Claim, doomed: list[Path]) -> None:
        reading, self._pipe = os.pipe()
        held = claim.holder
        task = json.dumps([held.mark, [str(path) for path in doomed], held.groups])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", leftovers.__file__, task],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[claim.lock.fileno()],
        )
        os.close(reading)

    def dismiss(self) -> None:
        leftovers.farewell(self._pipe)
        os.close(self._pipe)
        self._process.wait()
