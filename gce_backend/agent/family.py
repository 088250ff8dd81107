"""A trainer and everything it started, as proc(5) shows them, sessions of their own included."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

# Inherited by whatever the trainer starts: torchrun's workers and daemons leave its session.
MARK = "MLFLOW_GCE_TRAINER"

_POLL_S = 0.1


def boot_id() -> str:
    """Another one after each boot; "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def stat(pid: int) -> str:
    """The process's line in /proc; "" when it is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""


def start_time(line: str) -> str:
    """Clock ticks from boot to start: with the pid, who a process is."""
    fields = _after_name(line)
    return fields[19] if len(fields) > 19 else ""


def is_alive(line: str) -> bool:
    """Whether a process's line tells of one that still runs."""
    fields = _after_name(line)
    return bool(fields) and fields[0] not in "ZX"


class Family:
    """Args:
    session: the trainer's; 0 for none yet.
    mark: the value of ``MARK`` that its processes have.
    """

    def __init__(self, session: int, mark: str) -> None:
        self._session = str(session) if session else None  # 0 is the kernel's, and strangers'
        self._entry = os.fsencode(f"{MARK}={mark}")
        # By id and start: the mark is looked for once, while a process is young. One that hangs in
        # the kernel later may hang whoever asks for its environment.
        self._marked: dict[tuple[int, str], bool] = {}

    def lines(self) -> dict[int, str]:
        """Process id and line of each member that still runs."""
        marked, found = {}, {}
        for directory in Path("/proc").glob("[0-9]*"):
            pid = int(directory.name)
            line = stat(pid)
            if not is_alive(line):
                continue
            if _after_name(line)[3] == self._session:
                found[pid] = line
                continue
            key = (pid, start_time(line))
            marked[key] = self._marked[key] if key in self._marked else self._bears_mark(pid)
            if marked[key]:
                found[pid] = line
        self._marked = marked
        return found

    def _left_alone(self, members: dict[int, str]) -> set[int]:
        """Those outside of the trainer's group whose parent is no member: nobody tells them to
        end."""
        return {
            pid
            for pid, line in members.items()
            if _after_name(line)[2] != self._session and int(_after_name(line)[1]) not in members
        }

    def cpu_seconds(self) -> float:
        """What its members have used so far, and their children that have ended."""
        lines = self.lines().values()
        ticks = sum(int(field) for line in lines for field in _after_name(line)[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def await_end(self, seconds: float, *, tell: bool = False) -> bool:
        """Whether all of it has ended within that time.

        Args:
            tell: send SIGTERM, once, to those that are left alone.
        """
        until = time.monotonic() + seconds
        told: set[int] = set()
        while members := self.lines():
            for pid in self._left_alone(members) - told if tell else ():
                told.add(pid)
                _send(pid, signal.SIGTERM)
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_S)
        return True

    def signal(self, number: int) -> None:
        for pid in self.lines():
            _send(pid, number)

    def _bears_mark(self, pid: int) -> bool:
        try:
            return self._entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _after_name(line: str) -> list[str]:
    """The fields after the command's name, which may hold spaces: proc(5), from field 3 on."""
    return line.rpartition(")")[2].split()
