"""Who submits a run: a mark by which another command tells a client at work from a dead one."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_client() -> str:
    """This process: host, process id, and when it started (ids are used again)."""
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def is_alive(mark: str) -> bool:
    """Whether the client of ``mark`` certainly runs; of another host's nothing is known."""
    return mark.partition(" ")[0] == socket.gethostname() and not is_dead(mark)


def is_dead(mark: str) -> bool:
    """Whether the client of ``mark`` certainly does not run any more; another host's may."""
    host, _, rest = mark.partition(" ")
    pid, _, started = rest.partition(" ")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # somebody else's process
    return bool(started) and _started(int(pid)) != started


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; "" where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended, though its id is not free yet.
    return "" if fields[0] == "Z" else fields[19]
