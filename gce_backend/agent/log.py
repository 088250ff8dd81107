"""The run's log: the trainer's bytes as they are, and the agent's own lines between them.

The file is opened for appending by both, so that the trainer's output goes to the disk by
itself: it waits for nobody, and a killed agent loses none of it.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

PREFIX = "[mlflow-gce] "


class RunLog:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._own_bytes = 0  # of this agent's own lines
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, message: str) -> None:
        """A line of the agent's, in the run's log and on stderr (the serial console)."""
        line = f"{PREFIX}{message}\n".encode(errors="backslashreplace")  # names may be no UTF-8
        with self._lock:
            start = b"" if self._at_line_start() else b"\n"
            self._own_bytes += os.write(self.descriptor, start + line)
        sys.stderr.write(line.decode())
        sys.stderr.flush()

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
