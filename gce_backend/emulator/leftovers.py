"""Finding and ending every process of an emulator; also run by itself, as its watchdog.

Standard library only, and nothing of this package: the watchdog is this file, run as a script
with ``python -I -S``. It holds the reading end of a pipe whose writing end the emulator holds;
when that end closes without the word that all is well, the emulator died, and the watchdog ends
what it left: instances, the storage server, temporary files. Should the watchdog be killed too,
the next start on the same root does the same.

A process belongs to an emulator when its environment carries the mark (children inherit it, also
those that forked twice and changed their session), or when it is in a session one of the
emulator's processes leads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable

MARK = "GCE_EMULATOR_MARK"
_FAREWELL = b"stopped\n"


def marked(mark: str, sessions: frozenset[int] = frozenset()) -> list[int]:
    """Pids of the living processes of ``mark`` (``EMULATOR`` or ``EMULATOR/INSTANCE``)."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        if _carries(entry, wanted) or (sessions and session_of(int(entry)) in sessions):
            found.append(int(entry))
    return found


def _carries(pid: str, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:  # gone meanwhile, or another user's
        return False
    for item in environment.split(b"\0"):
        if item == wanted or item.startswith(wanted + b"/"):
            return True
    return False


def session_of(pid: int) -> int:
    """Session id; 0 for a process that is gone or a zombie."""
    fields = _stat(pid)
    return int(fields[3]) if fields and fields[0] not in ("Z", "X") else 0


def start_time(pid: int) -> int:
    """Clock ticks from boot to the process's start; 0 when it is gone. Tells pids apart."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else 0


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def kill_all(find: Callable[[], list[int]], seconds: float = 10.0) -> None:
    """SIGKILL what ``find`` finds until it finds nothing: forking does not outrun it.

    Raises:
        TimeoutError: something is still alive after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while pids := find():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} are alive {seconds} s after SIGKILL")
        time.sleep(0.01)


def remove_group(group: str | os.PathLike[str], seconds: float = 5.0) -> None:
    """End what is still in a control group or those inside it, and remove them all.

    Here is found also what has left its session and cleared its environment.

    Raises:
        OSError: it was still busy after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while os.path.isdir(group):
        try:
            for directory, _, _ in os.walk(group, topdown=False):
                _kill_group(directory)
                os.rmdir(directory)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _kill_group(group: str) -> None:
    with contextlib.suppress(OSError), open(os.path.join(group, "cgroup.procs")) as file:
        for pid in file.read().split():
            if pid != "0":  # one that cannot be seen from here; for kill(2), this process's group
                os.kill(int(pid), signal.SIGKILL)


def farewell(pipe: int) -> None:
    """Tell the watchdog at the other end that nothing is left to do."""
    with contextlib.suppress(OSError):
        os.write(pipe, _FAREWELL)


def _watch(mark: str, doomed: list[str], groups: list[str]) -> None:
    """Block until the emulator is gone; ``doomed`` and ``groups``: directories that go with it."""
    heard = sys.stdin.buffer.read()
    if _FAREWELL in heard:
        return
    with contextlib.suppress(TimeoutError):
        kill_all(lambda: marked(mark))
    for directory in doomed:
        shutil.rmtree(directory, ignore_errors=True)
    for group in groups:
        with contextlib.suppress(OSError):
            remove_group(group)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _watch(*json.loads(sys.argv[1]))
