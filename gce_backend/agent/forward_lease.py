"""One applier at a time: a lease, which is an object in the bucket that its holder renews.

The client keeps the same rules (``lease.py`` there). A holder that died leaves the object behind;
whoever waits sees the same generation of it for a while and takes it over. An agent that was
started again knows its own, and need not wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time

from .endpoint import retrying
from .errors import CloudError, ServerAway
from .storage import Storage, StoredObject

_RENEW_S = 3.0
EXPIRES_S = 10.0  # unchanged for so long: its holder is dead
_SAFE_S = 8.0  # so long after a renewal nobody else can have it
_WRITE_PATIENCE_S = 3.0


class LeaseTaken(ServerAway):
    """A client applies the journal, or may be."""


class Lease:
    """Args:
    owner: the same for every process that this instance's agent ever is.
    """

    def __init__(self, storage: Storage, bucket: str, name: str, owner: str) -> None:
        self._storage, self._bucket, self._name, self._owner = storage, bucket, name, owner
        self._generation: str | None = None  # while it is ours
        self._renewed = 0.0  # by the monotonic clock
        self._over = threading.Event()
        self._renewer: threading.Thread | None = None
        self._seen: tuple[str, float] | None = None  # somebody else's, and since when unchanged

    def take(self) -> None:
        """Raises LeaseTaken, or ServerAway when the bucket does not answer."""
        before = time.monotonic()
        try:
            there = self._storage.stat(self._bucket, self._name)
            self._generation = self._write(self._free_generation(there))
        except CloudError as error:
            raise ServerAway(f"the lease on the journal: {error}") from error
        self._seen, self._renewed = None, before
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._renew, args=(self._over,), daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Raises LeaseTaken when somebody else may have it."""
        if self._generation is None or time.monotonic() - self._renewed > _SAFE_S:
            raise LeaseTaken("the lease on the journal was not renewed in time")

    def give_back(self) -> None:
        """Let the next one have it at once; where the bucket is away, when it has expired."""
        self._over.set()
        if self._renewer is not None:
            self._renewer.join()
        with contextlib.suppress(LeaseTaken, CloudError):  # then it expires, or is another's
            self.check()
            self._storage.delete(self._bucket, self._name, generation=self._generation)
        self._generation = None

    def _free_generation(self, there: StoredObject | None) -> str:
        """What may be overwritten. Raises LeaseTaken."""
        if there is None:
            return "0"
        if self._seen is None or self._seen[0] != there.generation:
            self._seen = (there.generation, time.monotonic())
            if self._is_ours():
                return there.generation
        if time.monotonic() - self._seen[1] > EXPIRES_S:
            return there.generation
        raise LeaseTaken("a client is applying the journal")

    def _write(self, expected: str) -> str:
        data = json.dumps({"owner": self._owner, "at": time.time()}).encode()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()

        def put() -> StoredObject:
            return self._storage.put(self._bucket, self._name, data, md5=md5, generation=expected)

        try:
            return retrying(put, time.time() + _WRITE_PATIENCE_S).generation
        except CloudError as error:
            if error.status != 412:
                raise
            there = self._storage.stat(self._bucket, self._name)
            if there is None or not self._is_ours():
                raise LeaseTaken("a client is applying the journal") from error
            return there.generation  # written by a request whose reply was lost

    def _is_ours(self) -> bool:
        try:
            return bool(self._content()["owner"] == self._owner)
        except (ValueError, TypeError, KeyError):
            return False

    def _content(self) -> dict[str, str]:
        return dict(json.loads(self._storage.get(self._bucket, self._name)))

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(_RENEW_S):
            before = time.monotonic()
            try:
                self._generation = self._write(self._generation or "0")
            except LeaseTaken:
                self._generation = None
                return
            except CloudError:
                continue  # the bucket is away: `check` will tell
            self._renewed = before
