"""The run's log: the trainer's bytes as they are, and the agent's own lines between them.

The file is opened for appending by both, so that the trainer's output goes to the disk by
itself: it waits for nobody, and a killed agent loses none of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

PREFIX = "[mlflow-gce] "
_CONSOLE_CHARACTERS = 4000


def to_console(message: str) -> None:
    """A line on stderr, whose other end, what runs startup scripts, leaves early in a shutdown:
    then it is lost. It reads lines up to 64 KiB."""
    line = f"{PREFIX}{message[:_CONSOLE_CHARACTERS]}\n".encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        os.write(2, line)


class RunLog:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._own_bytes = 0  # of this agent's own lines
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, message: str) -> None:
        """A line of the agent's, in the run's log and on the console; never fails for either."""
        line = f"{PREFIX}{message}\n".encode(errors="backslashreplace")  # names may be no UTF-8
        with self._lock, contextlib.suppress(OSError):  # a full disk
            start = b"" if self._at_line_start() else b"\n"
            self._own_bytes += os.write(self.descriptor, start + line)
        to_console(message)

    @property
    def trainers_bytes(self) -> int:
        """How much there is beside the lines of this agent: it grows when the trainer prints."""
        with self._lock:
            return os.fstat(self.descriptor).st_size - self._own_bytes

    def tail(self, lines: int, max_bytes: int = 16384) -> str:
        """The last lines, for a message."""
        size = os.fstat(self.descriptor).st_size
        start = max(0, size - max_bytes)
        text = os.pread(self.descriptor, max_bytes, start).decode(errors="replace")
        return "\n".join(text.rstrip("\n").split("\n")[-lines:])

    def _at_line_start(self) -> bool:
        size = os.fstat(self.descriptor).st_size
        return size == 0 or os.pread(self.descriptor, 1, size - 1) == b"\n"

    def close(self) -> None:
        os.close(self.descriptor)
