"""The journal on disk: every write of the trainer, one JSON line each, in order.

``append`` returns once the line is with the kernel: it survives the death of any process. A
thread flushes the disk a moment later, one flush for all that came meanwhile; a power cut costs
at most that moment (``FLUSH_S``). Waiting for the flush would bind the training loop to the
disk's latency, which is what the relay is there to avoid.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .files import append

FLUSH_S = 0.02


class Journal:
    """Append-only file of records ``{"seq", "at", "path", "method", "body", …}``.

    Args:
        path: the file; made when absent. A last line cut short by a crash is removed: it was
            never acknowledged.
        last_seq: number of the last record of earlier attempts, from their segments.
        on_full: called when the disk is full; whether it has made room.
    """

    def __init__(
        self, path: Path, last_seq: int = 0, on_full: Callable[[], bool] = lambda: False
    ) -> None:
        self.path, self._on_full = path, on_full
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._closed = False
        _cut_torn_line(path)
        self.last_seq = last_seq
        self.last_at = 0  # unix ms of the last record
        for record in self.records():
            self.last_seq = int(record["seq"])
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._flusher = threading.Thread(target=self._flush_when_dirty, daemon=True, name="journal")
        self._flusher.start()

    def append(self, path: str, method: str, body: Any, **extra: str) -> None:
        """Acknowledgeable when this returns. OSError (a full disk) acknowledges nothing."""
        with self._lock:
            if self._closed:
                raise OSError("journal: closed, the run has ended")
            record: dict[str, Any] = {"seq": self.last_seq + 1, "at": int(time.time() * 1000)}
            record.update(path=path, method=method, body=body, **extra)
            line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
            try:
                append(self._descriptor, line, "journal")
            except OSError:
                if not self._on_full():
                    raise
                append(self._descriptor, line, "journal")
            self.last_seq += 1
            self.last_at = int(record["at"])
        self._dirty.set()

    def records(self) -> Iterator[dict[str, Any]]:
        """What the file holds, from its beginning."""
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    yield json.loads(line)

    def flush(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._dirty.set()
        self._flusher.join(5)
        self.flush()
        os.close(self._descriptor)

    def _flush_when_dirty(self) -> None:
        while True:
            self._dirty.wait()
            if self._closed:
                return
            self._dirty.clear()
            self.flush()
            time.sleep(FLUSH_S)


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        position = size
        tail = b""
        while position > 0 and b"\n" not in tail:
            step = min(65536, position)
            position -= step
            file.seek(position)
            tail = file.read(step) + tail
        whole = position + tail.rfind(b"\n") + 1
        if whole != size:
            file.truncate(whole)
