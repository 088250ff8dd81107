"""Watching a run from its bucket: log, heartbeat, status, and whether the instance still exists.

Reads only; what the end means is decided in ``runner.py``. Every object is asked for by name, a
second apart, so following costs a few cents a day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gce_backend.cancelling import Cancelling
from gce_backend.console import Console
from gce_backend.errors import FollowingLost, StorageError
from gce_backend.instance_watch import InstanceWatch, Loss
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import EndReason, Phase
from gce_backend.livelog import LiveLog
from gce_backend.livesync import LiveSync
from gce_backend.storage import Storage
from gce_backend.submission import Submission

_TICK_SECONDS = 1.0
# An agent that cannot reach the bucket goes on saving for so long at least (agent/lifecycle.py).
_SAVING_SECONDS = 300.0

#: The agent's phases, as lines on the console and as phases of the lifecycle.
_PHASES = {
    "fetching": Phase.BOOTING,
    "environment": Phase.BOOTING,
    "running": Phase.RUNNING,
    "collecting": Phase.COLLECTING,
}


@dataclass(frozen=True)
class End:
    """How following ended.

    Args:
        status: the agent's status.json, None when the instance left without writing one.
        reason: why there is none; the agent's own reason otherwise.
        detail: one sentence for the user.
        taken: Compute Engine took the instance; nobody asked for that.
        stopped: the instance is stopped; its disk is there.
        at: unix seconds of the last that is known of the instance at work; 0: nothing is.
    """

    status: dict[str, Any] | None
    reason: EndReason
    detail: str = ""
    taken: bool = False
    stopped: bool = False
    at: float = 0.0

    @classmethod
    def told(cls, status: dict[str, Any]) -> End:
        """The end that an attempt's status.json tells of."""
        reason, at = EndReason(status["end_reason"]), float(status.get("written_at") or 0.0)
        return cls(status, reason, status.get("message", ""), taken=True, at=at)

    @classmethod
    def lost(cls, loss: Loss, last_sign: float = 0.0) -> End:
        """The end of an attempt that left no status.

        Args:
            last_sign: unix seconds of its last heartbeat; 0: none is known.
        """
        at = loss.at or last_sign
        return cls(None, loss.reason, loss.detail, taken=loss.taken, stopped=loss.stopped, at=at)


@dataclass(frozen=True)
class Limits:
    """How patient a follower is, in seconds; the defaults are for a run submitted earlier.

    Args:
        boot_seconds: from when the instance is seen running to its first sign of life.
        grace_seconds: from SIGTERM to SIGKILL on the instance.
        cancel_seconds: how long a cancelled agent may give no sign of life before it is given up;
            None: what its own limits add up to.
        sync_seconds: how long a tracking store may stay away at the end.
    """

    boot_seconds: float = 600.0
    grace_seconds: float = 30.0
    cancel_seconds: float | None = None
    sync_seconds: float = 120.0


class Follower:
    """Follows one attempt until its status is there or its instance is gone.

    Args:
        entered: told of every phase of the lifecycle, with unix seconds.
    """

    def __init__(
        self,
        submission: Submission,
        storage: Storage,
        watch: InstanceWatch,
        *,
        cancelling: Cancelling,
        entered: Callable[[Phase, float], None],
        console: Console,
        interrupts: Interrupts,
        live: LiveSync,
        log: LiveLog,
        limits: Limits,
    ) -> None:
        self._submission = submission
        self._storage = storage
        self._watch = watch
        self._cancelling = cancelling
        self._entered = entered
        self._console = console
        self._interrupts = interrupts
        self._live = live
        self._limits = limits
        self._log = log
        self._started = time.monotonic()
        self._shown: list[tuple[str, float]] = []
        self._cancelled_at: float | None = None
        self._bucket_is_away = False
        self._answers_since = self._started
        self._heartbeat: dict[str, Any] = {}
        self._sign_at = self._started  # time.monotonic() of the last new heartbeat

    def follow(self) -> End:
        """Block until the attempt has ended.

        Raises:
            FollowingLost: the bucket refused for good; the run goes on.
        """
        while True:
            self._heed_cancel()
            try:
                end = self._look()
            except StorageError as error:
                self._bucket_did_not_answer(error)
            else:
                self._bucket_answered()
                if end is not None:
                    return end
                # Judged only by what was read just now: a bucket that is away is no sign that
                # the instance is.
                if late := self._too_late():
                    return late
            self._interrupts.sleep(_TICK_SECONDS)

    def _look(self) -> End | None:
        """Read what is new; the attempt's end when it has come."""
        # The instance first: when it is gone, everything it wrote is readable.
        loss = self._watch.look()
        self._show_phases()
        self._log.show_new()
        status = self._storage.read_json(self._submission.paths.status)
        if status is not None and int(status.get("attempt", 1)) >= self._submission.attempt:
            self._log.finish()
            self._show_last_phase(status)
            return End.told(status)
        if loss is None:
            return None
        self._log.finish()
        return End.lost(loss, last_sign=float(self._heartbeat.get("at", 0.0)))

    def _bucket_did_not_answer(self, error: StorageError) -> None:
        if not error.transient or time.time() > self._submission.deadline:
            raise following_lost(self._submission, error) from error
        if not self._bucket_is_away:
            self._bucket_is_away = True
            self._console.warn(f"{error}\nThe run goes on; following goes on when it answers")

    def _bucket_answered(self) -> None:
        if self._bucket_is_away:
            self._bucket_is_away = False
            self._answers_since = time.monotonic()
            self._console.warn("the bucket answers again")

    def _heed_cancel(self) -> None:
        if self._interrupts.wants_cancel and not self._cancelling.is_asked:
            self._cancelling.ask()
            self._console.warn(
                "cancelling: the training is ended and its results are saved; "
                "Ctrl-C once more leaves without waiting"
            )
        if self._cancelling.is_taken and self._cancelled_at is None:
            self._cancelled_at = time.monotonic()

    def _too_late(self) -> End | None:
        """An agent that nothing was heard of for too long, while it could have been heard."""
        limits, now = self._limits, time.monotonic()
        since = self._watch.running_since
        if since is None:  # an insert waits for its turn, or Compute Engine does not answer
            since = self._started + limits.boot_seconds
        if not self._shown and now > max(since, self._answers_since) + limits.boot_seconds:
            return End(None, EndReason.BOOT_TIMEOUT, "the instance gave no sign of life in time")
        if self._cancelled_at is not None:
            silent_since = max(self._cancelled_at, self._answers_since, self._sign_at)
            if now - silent_since > self._cancel_limit():
                return End(None, EndReason.CANCELLED, self._wedged(now - self._cancelled_at))
        if time.time() > self._submission.deadline:
            return End(None, EndReason.DEADLINE, "the instance's deadline has passed")
        return None

    def _cancel_limit(self) -> float:
        """How long a cancelled agent may be silent: one that cannot be heard may still save."""
        if self._limits.cancel_seconds is not None:
            return self._limits.cancel_seconds
        return 2 * self._limits.grace_seconds + _SAVING_SECONDS

    def _wedged(self, waited: float) -> str:
        """What is known when an agent is given up: what it did, and so what may be lost."""
        at = self._heartbeat.get("at")
        said = time.strftime("%H:%M:%S", time.localtime(at)) if at else "never"
        return (
            f"the agent did not end the run within {waited:.0f} s of the cancel (its last sign of "
            f"life: {said}). What it had uploaded by then is in the bucket; the rest is lost"
        )

    def _show_phases(self) -> None:
        heartbeat = self._storage.read_json(self._submission.paths.heartbeat) or {}
        if int(heartbeat.get("attempt", 1)) != self._submission.attempt:
            return  # an earlier attempt's last
        self._watch.is_known = True
        if heartbeat.get("at") != self._heartbeat.get("at"):  # by our clock: theirs may be wrong
            self._sign_at = time.monotonic()
        self._heartbeat = heartbeat
        for item in heartbeat.get("phases", [])[len(self._shown) :]:
            self._enter(item["phase"], float(item["at"]))

    def _enter(self, name: str, at: float) -> None:
        if self._shown:
            previous, since = self._shown[-1]
            self._console.phase(previous, at - since)
        else:
            self._console.phase("booted", at - self._submission.created_at)
        self._shown.append((name, at))
        self._entered(_PHASES[name], at)
        if name == "running":
            self._console.phase("running", None)
            self._live.mark_running()

    def _show_last_phase(self, status: dict[str, Any]) -> None:
        for item in status.get("phases", [])[len(self._shown) :]:
            self._enter(item["phase"], float(item["at"]))
        if self._shown:
            name, since = self._shown[-1]
            self._console.phase(name, float(status["written_at"]) - since)


def following_lost(submission: Submission, error: StorageError) -> FollowingLost:
    """The error for a bucket that refuses while a run is followed."""
    return FollowingLost(
        f"{error}\nRun {submission.run_id} can no longer be watched from here. It goes on by "
        f"itself; its instance {submission.instance!r} bills until it has saved its results and "
        "deleted itself. When this is mended, run:\n"
        f"  mlflow-gce attach {submission.run_id}"
    )
