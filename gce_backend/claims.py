"""Who asks for an attempt's instance: one client at a time, by an object in the bucket.

The object is created where there is none, and replaced only by whoever knows its generation. It
names the zone before the insert is sent there, so that everybody else knows where to look, and it
stays: an attempt that was asked for is asked for once. Whether its holder is gone, and never made
the instance, is for others to find out; see ``attempts.py``.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from dataclasses import asdict, replace

from gce_backend.errors import GceBackendError, StorageError
from gce_backend.storage import Storage
from gce_backend.submission import Submission

_OF_RUN = ("run_id", "project", "bucket", "paths", "tracking_uri")  # and of no single attempt


class ClaimLost(GceBackendError):
    """Another client asks for this attempt's instance by now; this one must not."""


class Claim:
    """The claim of one attempt of a run.

    Args:
        run: any attempt of the run.
    """

    def __init__(self, storage: Storage, run: Submission, attempt: int) -> None:
        self._storage, self._run = storage, run
        self._name = run.paths.attempt(attempt)
        self._owner = uuid.uuid4().hex
        self._generation = "0"  # as it was last seen; "0": there is none

    def look(self) -> Submission | None:
        """What its holder asks for; None where nobody claims the attempt. Raises StorageError."""
        # The generation first: what replaces it before it is read can then not be overwritten.
        found = self._storage.info(self._name)
        raw = self._storage.read_json(self._name) if found else None
        self._generation = found.generation if found and raw else "0"
        if raw is None:
            return None
        return replace(self._run, **raw["asks"])

    def take(self, submission: Submission) -> bool:
        """Whether it is ours now; it is not where it has changed since ``look``.

        Raises:
            StorageError: the bucket does not answer.
        """
        asks = {key: value for key, value in asdict(submission).items() if key not in _OF_RUN}
        content = json.dumps({"version": 1, "owner": self._owner, "asks": asks}).encode()
        generation = self._storage.put_if(self._name, content, self._generation)
        self._generation = generation or self._generation
        return generation is not None

    def announce(self, submission: Submission) -> None:
        """Name what is asked for next. Of the holder, before every insert.

        Raises:
            ClaimLost: it is another client's by now.
            StorageError: the bucket does not answer.
        """
        if not self.take(submission):
            raise self._lost()

    def is_lost(self) -> bool:
        """Of the holder, after an insert, which may have taken long."""
        with suppress(StorageError):  # no answer says nothing about whose it is
            found = self._storage.info(self._name)
            return found is None or found.generation != self._generation
        return False

    def confirm(self) -> None:
        """As ``is_lost``. Raises ClaimLost."""
        if self.is_lost():
            raise self._lost()

    def withdraw(self) -> None:
        """Of the holder, when no instance came of it: the attempt is free for anybody at once."""
        with suppress(StorageError):  # then it is free once this client is gone
            self._storage.delete_if(self._name, self._generation)

    def _lost(self) -> ClaimLost:
        return ClaimLost(f"{self._storage.uri(self._name)}: another client goes on with the run")
