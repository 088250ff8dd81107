"""The instance's disk: said before it is full, and a reserve for when it is.

Training code fills disks, with checkpoints above all. A full one must cost the file that did not
fit and nothing else: the metrics of the training need little, and that little is kept for them.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

# Free disk below which it is told, and uploaded copies of artifacts are dropped.
LOW_WATER_BYTES = 2 * 1024**3
_BACK_TO_NORMAL = 1.5  # times the low water: said once, not with every file
_POLL_S = 10.0
# A metric takes about 200 bytes of journal: room for 300,000.
RESERVE_BYTES = 64 * 1024**2


class Reserve:
    """A file whose room the journal, and what the agent must remember, get when nothing else is
    left."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set_aside(self) -> None:
        """Take the room, where there is plenty."""
        path = self._path
        if not path.exists() and shutil.disk_usage(path.parent).free > 4 * RESERVE_BYTES:
            try:
                with path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
            except OSError:  # a file system that cannot: then there is no reserve
                self.release()

    def release(self) -> bool:
        """Give the room away; False when that was done before."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True


class DiskWatch:
    """A thread that calls ``tell`` with a sentence when the disk of ``directory`` runs full, and
    with "" when there is room again."""

    def __init__(self, directory: Path, tell: Callable[[str], None]) -> None:
        self._directory, self._tell = directory, tell
        self._over = threading.Event()
        self._is_low = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="disk")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(5)

    def look(self) -> None:
        usage = shutil.disk_usage(self._directory)
        if not self._is_low and usage.free < LOW_WATER_BYTES:
            self._is_low = True
            self._tell(
                f"{usage.free / 1024**3:.1f} GB of the instance's {usage.total / 1024**3:.0f} GB "
                "disk are left; machine.disk_gb makes it larger"
            )
        elif self._is_low and usage.free > _BACK_TO_NORMAL * LOW_WATER_BYTES:
            self._is_low = False
            self._tell("")

    def _run(self) -> None:
        while True:
            self.look()
            if self._over.wait(_POLL_S):
                return
