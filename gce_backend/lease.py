"""One applier at a time: a lease, which is an object in the bucket that its holder renews.

A holder that died leaves the object behind; whoever waits sees the same generation of it for a
while and takes it over. Only generations and each one's own clock are looked at, since the clocks
of two clients may differ by minutes. ``agent/paths.py`` names the object; an agent that forwards a
journal keeps the same rules.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid

from gce_backend.errors import StorageError, TrackingError
from gce_backend.storage import Storage

_RENEW_SECONDS = 3.0
_EXPIRES_SECONDS = 10.0  # unchanged for so long: its holder is dead
_SAFE_SECONDS = 8.0  # so long after a renewal nobody else can have it


class LeaseLost(TrackingError):
    """Somebody else may be writing: this process slept, or the bucket was away from it."""


class Lease:
    """A lease by the name of its object. Used from one thread at a time.

    `take` returns at once; `check` before whatever needs the lease; `give_back` in the end.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._owner = uuid.uuid4().hex
        self._generation: str | None = None  # while it is ours
        self._renewed = (0.0, 0.0)
        self._over = threading.Event()
        self._renewer: threading.Thread | None = None
        self._seen: tuple[str, float] | None = None  # somebody else's, and since when unchanged

    def take(self) -> bool:
        """Whether it is ours now. Raises StorageError."""
        found = self._storage.info(self._name)
        before = self._now()
        expected = self._free_generation(found.generation if found else "0")
        if expected is None:
            return False
        self._generation = self._storage.put_if(self._name, self._content(), expected)
        if self._generation is None:
            return False  # another one was faster
        self._seen, self._renewed = None, before
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._renew, args=(self._over,), daemon=True)
        self._renewer.start()
        return True

    def check(self) -> None:
        """Raises LeaseLost when somebody else may have it."""
        passed = max(a - b for a, b in zip(self._now(), self._renewed, strict=True))
        if self._generation is None or passed > _SAFE_SECONDS:
            lost = LeaseLost(
                f"{self._storage.uri(self._name)} was not renewed for {passed:.0f} s, so another "
                "client may be applying this run's journal; what it holds is applied again"
            )
            lost.transient = True
            raise lost

    def give_back(self) -> None:
        """Let the next one have it at once; where the bucket is away, after ten seconds."""
        self._over.set()
        if self._renewer is not None:
            self._renewer.join()
        with contextlib.suppress(LeaseLost, StorageError):  # then it expires, or is another's
            self.check()
            self._storage.delete_if(self._name, str(self._generation))
        self._generation = None

    def _free_generation(self, generation: str) -> str | None:
        """What may be overwritten: nothing, or what has not changed for long. None: not yet."""
        if generation == "0":
            return generation
        if self._seen is None or self._seen[0] != generation:
            self._seen = (generation, time.monotonic())
        return generation if time.monotonic() - self._seen[1] > _EXPIRES_SECONDS else None

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(_RENEW_SECONDS):
            before = self._now()
            try:
                held = self._generation
                renewed = held and self._storage.put_if(self._name, self._content(), held)
            except StorageError:
                continue  # the bucket is away: `check` will tell
            self._generation = renewed
            if renewed is None:
                return
            self._renewed = before

    def _content(self) -> bytes:
        return json.dumps({"owner": self._owner, "at": time.time()}).encode()

    def _now(self) -> tuple[float, float]:
        """Both clocks: the monotonic one stands still while a laptop sleeps."""
        return time.monotonic(), time.time()
