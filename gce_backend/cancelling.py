"""The wish to end a run, brought to its agent by whichever way is open.

The metadata key is heard at once, the object in the bucket within ten seconds. Both are tried in
threads of their own: an API that does not answer must not keep anybody from leaving.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from gce_backend.agent.paths import CANCEL_ATTRIBUTE
from gce_backend.compute import Compute
from gce_backend.errors import ComputeError, InstanceNotFound, StorageError
from gce_backend.storage import Storage
from gce_backend.submission import Submission

WISH = b"cancel\n"  # what a person's cancel has in the bucket

_PAUSE_SECONDS = 5.0
_TRIES = 60


class Cancelling:
    """One run's cancellation; asking again changes nothing."""

    def __init__(self, submission: Submission, storage: Storage, compute: Compute) -> None:
        self._submission = submission
        self._storage = storage
        self._compute = compute
        self._ways: set[str] = set()
        self._taken = threading.Event()
        self._over = threading.Event()

    @property
    def is_asked(self) -> bool:
        return bool(self._ways)

    @property
    def is_taken(self) -> bool:
        """Whether one of the two ways has taken the wish."""
        return self._taken.is_set()

    def ask(self) -> None:
        """Begin to ask; returns at once. A signal may break it off: asked again, it goes on."""
        for name, way in (("object", self._by_object), ("attribute", self._by_attribute)):
            if name not in self._ways:
                target = self._trying(way)
                threading.Thread(target=target, daemon=True, name=f"cancel-{name}").start()
                self._ways.add(name)

    def delivered(self, seconds: float) -> bool:
        """Wait so long at most; whether the wish has got through."""
        return self._taken.wait(seconds)

    def close(self) -> None:
        """Stop trying: the run has ended."""
        self._over.set()

    def _trying(self, way: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(_TRIES):
                try:
                    way()
                except InstanceNotFound:
                    return
                except (StorageError, ComputeError):
                    if self._over.wait(_PAUSE_SECONDS):
                        return
                else:
                    self._taken.set()
                    return

        return work

    def _by_object(self) -> None:
        self._storage.put(self._submission.paths.cancel, WISH)

    def _by_attribute(self) -> None:
        here = self._submission
        self._compute.set_metadata(here.zone, here.instance, CANCEL_ATTRIBUTE, "1")
