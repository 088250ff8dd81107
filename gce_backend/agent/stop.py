"""Why the run is to stop before its trainer ends by itself: cancelled, out of time, preempted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .errors import CloudError
from .metadata import NO_ETAG, MetadataServer
from .paths import CANCEL_ATTRIBUTE
from .storage import Storage

CANCELLED = "cancelled"
DEADLINE = "deadline"
PREEMPTED = "preempted"
STALLED = "stalled"

_METADATA_WAIT_S = 60
_BUCKET_POLL_S = 10.0
# Compute Engine gives a spot instance 30 s from the notice on ("Preemption process"): so long for
# everything, and so long for the trainer to save.
NOTICE_S = 25.0
NOTICE_GRACE_S = 10.0


class Stop:
    """Set once, with its reason; the first one wins."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self.reason = ""  # an end reason of status.json
        self.at = 0.0  # unix seconds

    def set(self, reason: str) -> None:
        with self._lock:
            if not self.reason:
                self.reason, self.at = reason, time.time()
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)

    def limit(self, until: float) -> float:
        """``until``, or earlier where the machine itself will be gone."""
        return min(until, self.at + NOTICE_S) if self.reason == PREEMPTED else until


class Watch:
    """Threads that set ``stop``: the cancel attribute and a preemption's notice (at once), the
    cancel object in the bucket (within ten seconds), the deadline."""

    def __init__(self, stop: Stop, over: threading.Event) -> None:
        self._stop, self._over = stop, over

    def start(
        self, metadata: MetadataServer, storage: Storage, bucket: str, cancel: str, stop_at: float
    ) -> None:
        for name, target in (
            ("cancel-attribute", lambda: self._attribute(metadata)),
            ("preemption", lambda: self._preemption(metadata)),
            ("cancel-object", lambda: self._object(storage, bucket, cancel)),
            ("deadline", lambda: self._deadline(stop_at)),
        ):
            self._thread(name, target)

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        threading.Thread(target=target, daemon=True, name=name).start()

    def _watching(self) -> bool:
        return not self._stop.is_set() and not self._over.is_set()

    def _attribute(self, metadata: MetadataServer) -> None:
        etag = NO_ETAG
        while self._watching():
            asked_at = time.monotonic()
            try:
                attributes, new_etag = metadata.wait_for_attributes(etag, _METADATA_WAIT_S)
            except (CloudError, ValueError):
                self._over.wait(2)
                continue
            if CANCEL_ATTRIBUTE in attributes:
                self._stop.set(CANCELLED)
            if new_etag == etag and time.monotonic() - asked_at < 1:
                self._over.wait(2)  # a server that does not hold the request
            etag = new_etag

    def _preemption(self, metadata: MetadataServer) -> None:
        etag = NO_ETAG
        while self._watching():
            asked_at = time.monotonic()
            try:
                preempted, new_etag = metadata.wait_for_preemption(etag, _METADATA_WAIT_S)
            except CloudError as error:
                self._over.wait(30 if error.status == 404 else 2)
                continue
            if preempted:
                self._stop.set(PREEMPTED)
            if new_etag == etag and time.monotonic() - asked_at < 1:
                self._over.wait(2)  # a server that does not hold the request
            etag = new_etag

    def _object(self, storage: Storage, bucket: str, cancel: str) -> None:
        while self._watching():
            try:
                if storage.stat(bucket, cancel) is not None:
                    self._stop.set(CANCELLED)
            except CloudError:
                pass  # the bucket is away; the attribute is the first way, this is the second
            self._over.wait(_BUCKET_POLL_S)

    def _deadline(self, stop_at: float) -> None:
        while self._watching():
            remaining = stop_at - time.time()
            if remaining <= 0:
                self._stop.set(DEADLINE)
            else:
                self._over.wait(min(remaining, 30.0))
