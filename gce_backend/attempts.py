"""The next attempt of a run whose instance was taken: another zone, from the last checkpoint.

It needs a client to ask for the instance. Until one does, the run says that it waits, and costs
nothing but its bucket.
"""

from __future__ import annotations

import time
from contextlib import suppress

from gce_backend.blueprint import Blueprint
from gce_backend.budget import with_hours
from gce_backend.config import Endpoints
from gce_backend.console import Console
from gce_backend.errors import (
    CleanupError,
    GceBackendError,
    RunWaiting,
    StorageError,
    TrackingError,
)
from gce_backend.follow import End
from gce_backend.history import History, seconds_used
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import OUTCOME, EndReason
from gce_backend.request import InstanceRequest
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

STATE_TAG = "gce.state"
WAITING = "preempted, waiting"
PREEMPTIONS_TAG = "gce.preemptions"
ZONES_TAG = "gce.zones_used"

_LEAST_HOURS = 0.02  # less is not worth an instance


class Attempts:
    """Further attempts of one run."""

    def __init__(
        self,
        storage: Storage,
        tracking: Tracking,
        history: History,
        *,
        endpoints: Endpoints,
        console: Console,
    ) -> None:
        self._storage = storage
        self._tracking = tracking
        self._history = history
        self._endpoints = endpoints
        self._console = console

    def goes_on(self, submission: Submission, end: End) -> bool:
        """Whether a run that ended so is to have another attempt.

        Raises:
            StorageError: the bucket does not answer.
        """
        was_taken = end.taken and OUTCOME[end.reason].goes_on
        # An attempt that a client had announced, and died before it could ask for it.
        was_never_made = end.reason is EndReason.SUBMIT_FAILED and submission.attempt > 1
        if not (was_taken or was_never_made) or end.stopped or self._is_cancelled(submission):
            return False
        blueprint = Blueprint.load(self._storage, submission.paths, self._endpoints)
        return (
            blueprint is not None
            and submission.attempt < blueprint.settings.gce.max_attempts
            and self._hours_left(submission, blueprint) > _LEAST_HOURS
        )

    def mark_waiting(self, submission: Submission, end: End) -> None:
        """Write down that the run waits for a client, how often it was taken, and where."""
        with suppress(TrackingError):
            tags = self._tracking.get_run(submission.run_id).data.tags
            places = [place for place in tags.get(ZONES_TAG, "").split(", ") if place]
            if len(places) < submission.attempt:
                places.append(submission.zone)
            before = int(tags.get(PREEMPTIONS_TAG, 0))
            count = max(before, submission.attempt) if end.taken else before
            self._tracking.set_tags(
                submission.run_id,
                {STATE_TAG: WAITING, PREEMPTIONS_TAG: str(count), ZONES_TAG: ", ".join(places)},
            )

    def no_longer_waiting(self, run_id: str) -> None:
        with suppress(TrackingError):
            if STATE_TAG in self._tracking.get_run(run_id).data.tags:
                self._tracking.delete_tag(run_id, STATE_TAG)

    def next(self, submission: Submission, interrupts: Interrupts) -> Submission:
        """Ask for the next attempt's instance, in another zone if there is one.

        Raises:
            RunWaiting: there is none now; nothing bills, and the run can go on later.
            CleanupError: an instance may bill.
        """
        blueprint = Blueprint.load(self._storage, submission.paths, self._endpoints)
        assert blueprint is not None, "goes_on() said so"
        attempt = submission.attempt + 1
        hours = self._hours_left(submission, blueprint)
        try:
            self._write_spec(submission, attempt, hours)
            found = InstanceRequest(
                with_hours(blueprint.settings, hours),
                blueprint.agent,
                submission.paths,
                self._tracking,
                self._console,
                interrupts,
                attempt=attempt,
                avoid=submission.zone,
                storage=self._storage,
            ).in_first_zone_with_room()
        except CleanupError:
            raise
        except GceBackendError as error:
            raise RunWaiting(
                f"{error}\nRun {submission.run_id} waits for attempt {attempt}; no instance of it "
                "bills, and its checkpoint is in the bucket. To go on, run:\n"
                f"  mlflow-gce attach {submission.run_id}"
            ) from error
        self.no_longer_waiting(submission.run_id)
        return found

    def _write_spec(self, submission: Submission, attempt: int, hours: float) -> None:
        spec = self._storage.read_json(submission.paths.spec)
        if spec is None:
            raise StorageError(f"{self._storage.uri(submission.paths.spec)} is not there any more")
        # An insert that was given up left one for itself.
        self._storage.delete(submission.paths.cancel)
        deadline = time.time() + hours * 3600
        self._storage.put_json(
            submission.paths.spec, {**spec, "attempt": attempt, "deadline": deadline}
        )

    def _is_cancelled(self, submission: Submission) -> bool:
        return (self._storage.read(submission.paths.cancel) or b"").startswith(b"cancel")

    def _hours_left(self, submission: Submission, blueprint: Blueprint) -> float:
        """Of gce.max_hours, which is the run's and not an attempt's."""
        used = seconds_used(self._history.read()) / 3600
        return blueprint.settings.gce.max_hours - used
