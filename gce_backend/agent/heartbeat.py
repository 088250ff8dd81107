"""The sign of life in the bucket: rewritten every few seconds, and at once with every phase."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from .errors import CloudError
from .storage import Storage

INTERVAL_S = 5.0
# One object takes about one write a second; more are answered with 429.
_MIN_SPACING_S = 1.0


class Heartbeat:
    """Args:
    describe: gives the fields beside ``at``.
    """

    def __init__(
        self, storage: Storage, bucket: str, name: str, describe: Callable[[], dict[str, Any]]
    ) -> None:
        self._storage, self._bucket, self._name = storage, bucket, name
        self._describe = describe
        self._due = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def start(self) -> None:
        self._thread.start()

    def beat(self) -> None:
        """Ask for one now; returns at once."""
        self._due.set()

    def stop(self) -> None:
        self._over.set()
        self._due.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._over.is_set():
            self._due.clear()
            data = json.dumps({"at": time.time(), **self._describe()}).encode()
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            with contextlib.suppress(CloudError):  # the bucket is away: the next beat tells
                self._storage.put(self._bucket, self._name, data, md5=md5)
            self._over.wait(_MIN_SPACING_S)
            self._due.wait(INTERVAL_S - _MIN_SPACING_S)
