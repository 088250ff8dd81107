"""The project at the path it has on the client: a sweep's jobs hold absolute paths.

A bind mount, which needs root and a place that is free. Where there is none the project stays
where it was unpacked, and whoever runs in it has to translate paths.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from .users import Account


def placed(work: Path, wanted: str, account: Account, say: Callable[[str], None]) -> Path:
    """Where the project can be found: ``wanted`` when it can be had there, ``work`` otherwise.

    Args:
        wanted: an absolute path; "" for nowhere in particular.
    """
    if not wanted:
        return work
    place = Path(wanted)
    problem = _mount(work, place, account)
    if not problem:
        return place
    say(f"the project is in {work} and not in {place}, where the client has it: {problem}")
    return work


def _mount(work: Path, place: Path, account: Account) -> str:
    """Why ``work`` cannot be mounted at ``place``; "" when it is."""
    if not place.is_absolute() or os.path.normpath(place) != str(place):
        return "that is no plain absolute path"
    if place.exists() and os.path.samefile(place, work):
        return ""  # mounted before the agent was started again
    if os.geteuid() != 0:
        return "only root can mount"
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        return "this machine has something else there"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return str(error)
    closed = [path for path in place.parents if not path.stat().st_mode & 0o001]
    if account.uid is not None and closed:
        return f"'{account.name}' may not enter {closed[0]}"
    done = subprocess.run(
        ["mount", "--bind", str(work), str(place)], capture_output=True, text=True, timeout=30
    )
    return done.stderr.strip() if done.returncode else ""
