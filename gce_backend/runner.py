"""The heart: one attempt after another, from the instance to its proven end.

The order of the last steps is the product's promise: results proven, then the delete, then a GET
that says 404, and only then the words "deleted" and "finished". The tracking store comes last; an
instance never waits for it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gce_backend import backlog, facts
from gce_backend.attempts import Attempts
from gce_backend.blueprint import Blueprint
from gce_backend.cancelling import WISH, Cancelling
from gce_backend.compute import Compute
from gce_backend.config import Endpoints
from gce_backend.console import Console
from gce_backend.ending import Ending
from gce_backend.errors import (
    ComputeError,
    GceBackendError,
    InstanceNotFound,
    ResultsUnverified,
    StorageError,
    TrackingError,
)
from gce_backend.follow import End, Follower, Limits, following_lost
from gce_backend.history import Event, History, seconds_used
from gce_backend.instance_watch import InstanceWatch
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import EndReason, Lifecycle, Phase
from gce_backend.livelog import LiveLog
from gce_backend.livesync import LiveSync, until_store_answers
from gce_backend.ssh_access import SshAccess
from gce_backend.ssh_route import Route
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.summary import Result, result_before, result_of, summarize
from gce_backend.sync import JournalApplier
from gce_backend.tracking import END_REASON_TAG, Tracking

__all__ = ["Limits", "Result", "Runner"]

_GOES_ON = "goes on by itself"
_LAST_WISH_SECONDS = 2.0  # a cancel gets so long to get through to the run before we leave it
_MOST_RESTARTS = 2
_RESTARTED = "started again after a host error"
_RESTARTS_TAG = "gce.restarts"
_TERMINAL = ("FINISHED", "FAILED", "KILLED")


class Runner:
    """One submitted run, followed from this process.

    Attributes:
        submission: the current attempt's.
    """

    def __init__(
        self,
        submission: Submission,
        *,
        endpoints: Endpoints,
        console: Console,
        limits: Limits | None = None,
    ) -> None:
        self.submission = submission
        self._console = console
        self._endpoints = endpoints
        bucket, project = submission.bucket, submission.project
        self._storage = Storage(bucket, project=project)
        self._compute = Compute(project, endpoint=endpoints.compute)
        self._tracking = Tracking(submission.tracking_uri)
        self._applier = JournalApplier(
            self._storage,
            submission.paths,
            tracking_uri=submission.tracking_uri,
            run_id=submission.run_id,
            warn=console.warn,
        )
        self._limits = limits or Limits()
        self._knows_limits = limits is not None
        brief = Storage(bucket, project=project, retry_seconds=5.0)
        self._history = History(brief, submission.paths)
        self._attempts = Attempts(
            self._storage,
            self._tracking,
            self._history,
            Compute(project, endpoint=endpoints.compute, retry_seconds=0.0),
            endpoints=endpoints,
            console=console,
        )
        self._life = Lifecycle(phase=Phase.CREATING)
        self._step = "is being followed"
        self._live: LiveSync | None = None
        self._wants_cancel = False
        self._cancel_is_lost = False
        self._is_over = False  # by what MLflow knew when we came

    # ------------------------------------------------------------------ what commands ask for

    def follow(self, interrupts: Interrupts) -> Result:
        """Follow to the end; return once the instance is gone and MLflow knows how it ended.

        Raises:
            Detached: a signal asked to leave; the run goes on by itself.
            ResultsUnverified: the bucket lacks something; the instance is kept until its deadline.
            CleanupError: an instance may still bill.
            RunWaiting: the run was taken back, and there is no room for it now.
            FollowingLost: the bucket refused for good; the run goes on by itself.
            TrackingError: the store stayed away; everything is safe in the bucket.
        """
        with interrupts.deferred(), interrupts.leaving(self._left):
            if (ended := self._ended_before()) is not None:
                return ended
            if not self._knows_limits:
                self._limits = self._limits_of_the_run()
            end, serial = self._attempt_after_attempt(interrupts)
            result = result_of(self.submission, end, serial, self._storage)
            self._step = "has ended, and MLflow is told how"
            self._write_last(end)
            if not self._console.is_quiet:
                self._tell_end(end.reason)
            return result

    def sync(self) -> int:
        """Apply what the bucket has of the run to the store; its end too, when it has ended.

        Returns:
            How many records of the journal were applied.
        """
        status = self._status()
        if status is None:
            records = self._applier.apply_new()
            self._note_loss()
            return records
        end = End.told(status)
        reason = self._attempts.outcome(self.submission, end)
        if reason is None:
            self._attempts.mark_waiting(self.submission, end)
            return self._applier.apply_new()
        if reason is end.reason:
            reason = self._ending().proven_reason(status)
        return self._write_end(reason, status)

    @property
    def refused(self) -> int:
        """How many of the writes applied here the store did not accept; they are set aside."""
        return sum(refusal.count for refusal in self._applier.refused)

    def cancel(self, interrupts: Interrupts) -> Result:
        """Ask for the end and follow until it is reached."""
        self._wants_cancel = True
        return self.follow(interrupts)

    def delete_now(self) -> None:
        """Delete the instance without waiting for anything, and write down how the run ended.

        What had not reached the bucket is lost.
        """
        is_over = self._recorded_end() is not None
        if not is_over:
            with suppress(StorageError):  # a client that goes on after a preemption must not
                self._storage.put(self.submission.paths.cancel, WISH)
        ending = self._ending()
        ending.delete()
        while not is_over and (later := self._later()) is not None:
            self.submission = later
            self._life = Lifecycle(phase=Phase.CREATING)
            ending = self._ending()
            ending.delete()
        status = self._status()
        if status is None and is_over:
            return  # it had ended before, and this changes nothing about how
        reason = ending.proven_reason(status) if status else EndReason.CANCELLED
        self._write_end(EndReason.CANCELLED if reason is EndReason.PREEMPTED else reason, status)

    def _later(self) -> Submission | None:
        """The next attempt, where another client has asked for one."""
        with suppress(StorageError):
            return self._attempts.later(self.submission)
        return None

    # ------------------------------------------------------------------ attempts

    def _attempt_after_attempt(self, interrupts: Interrupts) -> tuple[End, str]:
        """How the last attempt ended, and the serial output of one that left no status."""
        with (
            LiveSync(
                self._applier, self._tracking, self.submission.run_id, self._console.warn
            ) as live,
            LiveLog(self.submission, self._storage, self._ssh_access(), self._console) as log,
        ):
            self._live = live
            while True:
                end = self._follow_one(interrupts, live, log)
                if end.stopped and end.taken and self._start_again(end):
                    log.go_on(self.submission, self._ssh_access())
                    continue
                if self._was_asked_again(end):
                    continue
                try:
                    reason = self._outcome(end, interrupts)
                    serial = self._ending().prove_and_delete(end, goes_on=reason is None)
                except ResultsUnverified:
                    raise
                except StorageError as error:
                    raise following_lost(self.submission, error) from error
                found = reason or self._attempts.next(self.submission, end, interrupts)
                if isinstance(found, EndReason):
                    return replace(end, reason=found), serial
                self.submission = found
                log.go_on(self.submission, self._ssh_access())
                self._life = Lifecycle(phase=Phase.CREATING)

    def _follow_one(self, interrupts: Interrupts, live: LiveSync, log: LiveLog) -> End:
        """One attempt, to the end of its instance's work."""
        here = self.submission
        self._step = _GOES_ON
        brief = Compute(here.project, endpoint=self._endpoints.compute, retry_seconds=0.0)
        cancelling = Cancelling(here, self._storage, self._compute)
        if self._wants_cancel:
            cancelling.ask()
        try:
            return Follower(
                here,
                self._storage,
                InstanceWatch(here, brief),
                cancelling=cancelling,
                entered=self._enter,
                console=self._console,
                interrupts=interrupts,
                live=live,
                log=log,
                limits=self._limits,
            ).follow()
        except BaseException:
            if self._wants_cancel or interrupts.wants_cancel:
                cancelling.ask()  # the signal may have come before the follower did
                self._cancel_is_lost = not cancelling.delivered(_LAST_WISH_SECONDS)
            raise
        finally:
            cancelling.close()

    def _outcome(self, end: End, interrupts: Interrupts) -> EndReason | None:
        """How the run has ended; None: another attempt is to follow. Raises StorageError."""
        cancels = self._wants_cancel or interrupts.wants_cancel
        if end.status is not None:
            self.submission = self._attempts.of_status(self.submission, end.status)
        reason = self._attempts.outcome(self.submission, end, cancels=cancels)
        if reason is None:
            self._step = "waits for a client, its checkpoint in the bucket"
            self._attempts.mark_waiting(self.submission, end)
            return None
        self._step = "has ended, and is being put away"
        # Somebody may have cancelled it while its instance was taken: it ended because of the one.
        is_taken = reason in (EndReason.PREEMPTED, EndReason.INSTANCE_LOST)
        return EndReason.CANCELLED if cancels and is_taken else reason

    def _was_asked_again(self, end: End) -> bool:
        """Whether the client that submits has gone on to another zone: that one is followed."""
        here = self.submission
        if end.reason is EndReason.SUBMIT_FAILED and here.attempt == 1:
            with suppress(TrackingError):
                run = self._tracking.get_run(here.run_id)
                self.submission = Submission.from_run(run, here.tracking_uri)
        return self.submission.created_at > here.created_at

    def _start_again(self, end: End) -> bool:
        """Boot an instance whose host failed: its disk has everything, and its agent goes on."""
        here = self.submission
        with suppress(StorageError, ComputeError):
            before = [each for each in self._history.read() if each.why.startswith(_RESTARTED)]
            if len(before) >= _MOST_RESTARTS or self._wants_cancel:
                return False
            self._console.warn(f"{end.detail}: starting it again")
            self._compute.start(here.zone, here.instance)
            self._record(Phase.BOOTING, time.time(), f"{_RESTARTED}, time {len(before) + 1}")
            with suppress(TrackingError):
                self._tracking.set_tags(here.run_id, {_RESTARTS_TAG: str(len(before) + 1)})
            return True
        return False

    def _ending(self) -> Ending:
        return Ending(
            self.submission,
            self._storage,
            self._compute,
            entered=self._enter,
            try_to_write_end=self._try_to_write_end,
            console=self._console,
        )

    # ------------------------------------------------------------------ what is known

    def _ended_before(self) -> Result | None:
        """How a run ended that has left nothing to do: no instance, and MLflow knows its end.

        What is written of its end stays: nothing that could be found out now is better. Whoever
        comes to see it gets its log, where an agent has left a status behind it.
        """
        reason = self._recorded_end()
        self._is_over = reason is not None
        if reason is None:
            return None
        status = self._status()
        if status is not None and not self._wants_cancel:
            return None
        try:
            self._compute.get(self.submission.zone, self.submission.instance)
        except InstanceNotFound:
            result = result_before(self.submission, reason, status)
            if self._wants_cancel and reason in (EndReason.SUCCEEDED, EndReason.CANCELLED):
                self._console.say(result.message)  # the others are errors, and told as such
            return result
        except ComputeError:
            pass  # the follower asks again
        return None

    def _recorded_end(self) -> EndReason | None:
        """The end that MLflow knows of, if the run is terminal there."""
        try:
            run = self._tracking.get_run(self.submission.run_id)
        except TrackingError:
            return None
        tag = run.data.tags.get(END_REASON_TAG)
        if run.info.status not in _TERMINAL or tag is None:
            return None
        return EndReason(tag)

    def _status(self) -> dict[str, Any] | None:
        """The current attempt's status.json; an earlier one's says nothing of it."""
        status = self._storage.read_json(self.submission.paths.status)
        if status is None or int(status.get("attempt", 1)) < self.submission.attempt:
            return None
        return dict(status)

    def _note_loss(self) -> None:
        """Write down the end of an instance that is gone and left no status."""
        loss = InstanceWatch(self.submission, self._compute).look()
        if loss is None or loss.stopped or self._status() or self._recorded_end():
            return
        end = End.lost(loss)
        reason = self._attempts.outcome(self.submission, end)
        if reason is None:
            self._attempts.mark_waiting(self.submission, end)
        else:
            self._write_end(reason, None)

    def _enter(self, phase: Phase, at: float) -> None:
        known = len(self._life.history)
        self._life.catch_up(phase, at=at)
        for step in self._life.history[known:]:
            self._record(step.phase, step.at)

    def _record(self, phase: Phase, at: float, why: str = "") -> None:
        here = self.submission
        self._history.record(Event(here.attempt, phase, at, why, here.zone, here.instance))

    def _seconds(self) -> float:
        """How long the run's instances have existed."""
        with suppress(StorageError):
            if (seconds := seconds_used(self._history.read())) > 0:
                return seconds
        return self._life.history[-1].at - self.submission.created_at

    def _ssh_access(self) -> SshAccess | None:
        """For the log's own thread, so with a client of its own; None: there is no SSH."""
        here = self.submission
        if here.ssh_via == "none" or self._is_over:
            return None
        compute = Compute(here.project, endpoint=self._endpoints.compute)
        route = Route.of(emulated=self._endpoints.emulated)
        return SshAccess(here, compute, self._storage, route=route)

    def _limits_of_the_run(self) -> Limits:
        """As patient as its settings say, for whoever comes back to it."""
        with suppress(GceBackendError):
            paths = self.submission.paths
            if (blueprint := Blueprint.load(self._storage, paths, self._endpoints)) is not None:
                gce = blueprint.settings.gce
                return Limits(gce.boot_minutes * 60, gce.grace_seconds)
        return Limits()

    # ------------------------------------------------------------------ what is told

    def _tell_end(self, reason: EndReason) -> None:
        summarize(
            self.submission,
            reason,
            self._seconds(),
            tracking=self._tracking,
            compute=self._compute,
            console=self._console,
        )
        backlog.warn(self._tracking, self._console, but=self.submission.run_id)

    def _left(self) -> str:
        here = self.submission
        own = (
            f", and its instance {here.instance!r} deletes itself at the end"
            if self._step == _GOES_ON
            else ""
        )
        left = f"detached from run {here.run_id}; it {self._step}{own}. "
        if self._cancel_is_lost:
            return (
                f"{left}Neither Compute Engine nor the bucket took the cancel within "
                f"{_LAST_WISH_SECONDS:.0f} s: it did not get through. To cancel the run, use:\n"
                f"  mlflow-gce stop {here.run_id}"
            )
        return f"{left}Come back with:\n  mlflow-gce attach {here.run_id}"

    def _write_end(self, reason: EndReason, status: dict[str, Any] | None) -> int:
        """The journal's rest and how the run ended, into the store as soon as it answers.

        Returns:
            How many records of the journal were applied.
        """
        run_id = self.submission.run_id
        at = float(status["ended_at"]) if status and status.get("ended_at") else None
        # Files are moved to their final names only once all are proven to be there: an agent that
        # is not done uploads under the old ones.
        if self._live is not None:
            self._live.end()
        proven = reason is not EndReason.RESULTS_UNVERIFIED
        apply = self._applier.finish if proven else self._applier.apply_new
        records = 0

        def write() -> None:
            nonlocal records
            records += apply()
            facts.record(self._tracking, self.submission, status)
            self._tracking.terminate(run_id, reason, at=at)

        until_store_answers(write, run_id, seconds=self._limits.sync_seconds)
        self._attempts.no_longer_waiting(run_id)
        return records

    def _write_last(self, end: End) -> None:
        """As ``_write_end``, once nothing else is left to do."""
        try:
            self._write_end(end.reason, end.status)
        except TrackingError as error:
            raise TrackingError(
                f"run {self.submission.run_id} has ended ({end.reason.value}), and its instance "
                f"has been deleted; but {error}"
            ) from error

    def _try_to_write_end(self, reason: EndReason, status: dict[str, Any] | None) -> None:
        """As ``_write_end``, where something worse is about to be told."""
        try:
            self._write_end(reason, status)
        except GceBackendError as error:
            self._console.warn(f"MLflow does not know yet how the run ended: {error}")
