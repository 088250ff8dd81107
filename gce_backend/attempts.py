"""The next attempt of a run whose instance was taken: another zone, from the last checkpoint.

It needs a client to ask for the instance. Until one does, the run says that it waits, and costs
nothing but its bucket.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gce_backend.blueprint import Blueprint
from gce_backend.budget import with_hours
from gce_backend.cancelling import WISH
from gce_backend.claims import Claim, ClaimLost
from gce_backend.compute import Compute
from gce_backend.config import Endpoints
from gce_backend.console import Console
from gce_backend.errors import (
    CleanupError,
    ComputeError,
    GceBackendError,
    InternalError,
    NoCapacity,
    RunWaiting,
    StorageError,
    TrackingError,
)
from gce_backend.follow import End
from gce_backend.handover import claim_or_follow
from gce_backend.history import Event, History, seconds_used
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import OUTCOME, EndReason, Phase
from gce_backend.request import GIVEN_UP, InstanceRequest
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

STATE_TAG = "gce.state"
WAITING = "preempted, waiting"
PREEMPTIONS_TAG = "gce.preemptions"
ZONES_TAG = "gce.zones_used"


_LEAST_HOURS = 0.02  # less is not worth an instance


class Attempts:
    """Further attempts of one run.

    Args:
        compute: one that does not try again for long: it looks for what another client made.
    """

    def __init__(
        self,
        storage: Storage,
        tracking: Tracking,
        history: History,
        compute: Compute,
        *,
        endpoints: Endpoints,
        console: Console,
    ) -> None:
        self._storage = storage
        self._tracking = tracking
        self._history = history
        self._compute = compute
        self._endpoints = endpoints
        self._console = console

    def outcome(
        self, submission: Submission, end: End, *, cancels: bool = False
    ) -> EndReason | None:
        """How the run has ended with this end of an attempt; None: another attempt is to follow.

        Somebody's claim counts before a cancel: its holder looks for the cancel after it has
        claimed, as we look for the claim after we have cancelled, so one of us sees the other.

        Args:
            cancels: our own person has asked for the end.

        Raises:
            StorageError: the bucket does not answer.
        """
        was_taken = end.taken and OUTCOME[end.reason].goes_on
        if not (was_taken or _was_never_made(submission, end)) or end.stopped:
            return end.reason
        blueprint = Blueprint.load(self._storage, submission.paths, self._endpoints)
        if blueprint is None:
            return end.reason
        if cancels:
            self._cancel(submission)
        number = _number_after(submission, end)
        if Claim(self._storage, submission, number).look() is not None:
            return None
        if self._is_cancelled(submission):
            return EndReason.CANCELLED
        return None if self._is_affordable(blueprint, submission, end) else end.reason

    def later(self, submission: Submission) -> Submission | None:
        """The next attempt, where a client has asked for one. Raises StorageError."""
        return Claim(self._storage, submission, submission.attempt + 1).look()

    def of_status(self, submission: Submission, status: Mapping[str, Any]) -> Submission:
        """The attempt that a status.json tells of: not the one that was followed, where another
        client has gone on since, or had asked in another zone. Raises StorageError.
        """
        attempt = int(status.get("attempt", 1))
        if attempt > submission.attempt:
            submission = Claim(self._storage, submission, attempt).look() or submission
        return replace(
            submission,
            attempt=attempt,
            instance=str(status.get("instance") or submission.instance),
            zone=str(status.get("zone") or submission.zone),
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

    def next(
        self, submission: Submission, end: End, interrupts: Interrupts
    ) -> Submission | EndReason:
        """Ask for the next attempt's instance, in another zone if there is one.

        Returns:
            The instance's submission, whichever client has asked for it; or how the run has
            ended after all: it was cancelled meanwhile, or nothing is left of ``gce.max_hours``.
            Decided only by the holder of the attempt's claim.

        Raises:
            RunWaiting: there is none now; the run can go on later.
            CleanupError: an instance may bill.
            FollowingLost: another client asks for it, and nothing is heard of that.
        """
        number = _number_after(submission, end)
        try:
            claim = claim_or_follow(
                self._storage, self._compute, submission, number, interrupts, self._cancel
            )
        except StorageError as error:
            raise RunWaiting(
                f"{error}\nRun {submission.run_id} waits for attempt {number}, unless another "
                "client has asked for it; this one has not, and no instance of its bills. To see, "
                f"and to go on, run:\n  mlflow-gce attach {submission.run_id}"
            ) from error
        if isinstance(claim, Submission):
            self._console.say(f"another client has asked for attempt {number}: following that")
            self.no_longer_waiting(submission.run_id)
            return claim
        try:
            found = self._ask(claim, number, submission, end, interrupts)
        except ClaimLost:
            return self.next(submission, end, interrupts)
        except CleanupError:
            raise
        except GceBackendError as error:
            if not _may_come_late(error):
                claim.withdraw()
            raise RunWaiting(
                f"{error}\nRun {submission.run_id} waits for attempt {number}; no instance of it "
                "bills, and its checkpoint is in the bucket. To go on, run:\n"
                f"  mlflow-gce attach {submission.run_id}"
            ) from error
        if isinstance(found, EndReason):
            claim.withdraw()
        else:
            self.no_longer_waiting(submission.run_id)
        return found

    def _ask(
        self,
        claim: Claim,
        number: int,
        submission: Submission,
        end: End,
        interrupts: Interrupts,
    ) -> Submission | EndReason:
        """As the holder of the attempt's claim."""
        blueprint = Blueprint.load(self._storage, submission.paths, self._endpoints)
        assert blueprint is not None, "outcome() said so"
        if interrupts.wants_cancel:
            self._cancel(submission)  # for whoever else might go on
        if not self._is_free_to_start(submission):
            return EndReason.CANCELLED
        if not self._is_affordable(blueprint, submission, end):
            return end.reason
        self._console.warn(f"{end.detail}: going on from the last checkpoint")
        hours = self._hours_left(blueprint, submission, end)
        self._write_spec(submission, number, hours)
        return InstanceRequest(
            with_hours(blueprint.settings, hours),
            blueprint.agent,
            submission.paths,
            self._tracking,
            self._console,
            interrupts,
            attempt=number,
            avoid=submission.zone,
            storage=self._storage,
            claim=claim,
        ).in_first_zone_with_room()

    def _is_free_to_start(self, submission: Submission) -> bool:
        """Whether nobody cancelled the run; what an insert left that was given up is taken away."""
        name = submission.paths.cancel
        if (found := self._storage.info(name)) is None:
            return True
        if self._is_cancelled(submission):
            return False
        self._storage.delete_if(name, found.generation)
        return not self._is_cancelled(submission)

    def _write_spec(self, submission: Submission, attempt: int, hours: float) -> None:
        spec = self._storage.read_json(submission.paths.spec)
        if spec is None:
            raise StorageError(f"{self._storage.uri(submission.paths.spec)} is not there any more")
        deadline = time.time() + hours * 3600
        self._storage.put_json(
            submission.paths.spec, {**spec, "attempt": attempt, "deadline": deadline}
        )

    def _cancel(self, submission: Submission) -> None:
        self._storage.put(submission.paths.cancel, WISH)

    def _is_cancelled(self, submission: Submission) -> bool:
        return self._storage.read(submission.paths.cancel) not in (None, GIVEN_UP)

    def _is_affordable(self, blueprint: Blueprint, submission: Submission, end: End) -> bool:
        return (
            _number_after(submission, end) <= blueprint.settings.gce.max_attempts
            and self._hours_left(blueprint, submission, end) > _LEAST_HOURS
        )

    def _hours_left(self, blueprint: Blueprint, submission: Submission, end: End) -> float:
        """Of gce.max_hours, which is the run's and not an attempt's; waiting uses none of it."""
        events = self._history.read()
        if end.at:
            at = min(end.at, time.time())
            events.append(Event(submission.attempt, Phase.DELETED, at))
        return blueprint.settings.gce.max_hours - seconds_used(events) / 3600


def _was_never_made(submission: Submission, end: End) -> bool:
    """A further attempt that a client had announced, and found no room for, or died before."""
    return end.reason is EndReason.SUBMIT_FAILED and submission.attempt > 1


def _number_after(submission: Submission, end: End) -> int:
    """Of the next attempt: one that came to nothing is no attempt."""
    return submission.attempt + (not _was_never_made(submission, end))


def _may_come_late(error: GceBackendError) -> bool:
    """Whether the instance of an insert that failed so may yet come to be."""
    is_answer = isinstance(error, (NoCapacity, InternalError))
    return isinstance(error, ComputeError) and error.transient and not is_answer
