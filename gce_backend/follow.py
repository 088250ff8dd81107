"""Watching a run from its bucket: log, heartbeat, status, and whether the instance still exists.

Reads only; what the end means is decided in ``runner.py``. Every object is asked for by name, a
second apart, so following costs a few cents a day.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from gce_backend.agent.paths import CANCEL_ATTRIBUTE
from gce_backend.compute import Compute
from gce_backend.console import Console
from gce_backend.errors import ComputeError, FollowingLost, InstanceNotFound, StorageError
from gce_backend.interrupts import Detached, Interrupts
from gce_backend.lifecycle import EndReason, Lifecycle, Phase
from gce_backend.livesync import LiveSync
from gce_backend.storage import Storage
from gce_backend.submission import Submission

_TICK_SECONDS = 1.0
_INSTANCE_CHECK_SECONDS = 5.0
_SILENCE_SECONDS = 60.0  # a heartbeat comes every five
_GONE = ("TERMINATED", "STOPPED", "SUSPENDED")

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
    """

    status: dict[str, Any] | None
    reason: EndReason
    detail: str = ""


class Follower:
    """Follows one submission until its status is there or its instance is gone.

    Args:
        boot_seconds: how long the first sign of life may take.
    """

    def __init__(
        self,
        submission: Submission,
        storage: Storage,
        compute: Compute,
        *,
        life: Lifecycle,
        console: Console,
        interrupts: Interrupts,
        live: LiveSync,
        boot_seconds: float,
        grace_seconds: float,
    ) -> None:
        self._submission = submission
        self._storage = storage
        self._compute = compute
        self._life = life
        self._console = console
        self._interrupts = interrupts
        self._live = live
        self._boot_deadline = submission.created_at + boot_seconds
        self._grace_seconds = grace_seconds
        self._log_piece = 0
        self._shown: list[tuple[str, float]] = []
        self._instance_checked_at = 0.0
        self._cancelled_at: float | None = None
        self._bucket_is_away = False
        self._heartbeat_at = 0.0

    def follow(self) -> End:
        """Block until the run has ended.

        Raises:
            Detached: a signal asked to leave; the run goes on.
            FollowingLost: the bucket refused for good; the run goes on.
        """
        while True:
            self._heed_signals()
            try:
                if (end := self._look()) is not None:
                    return end
            except StorageError as error:
                self._bucket_did_not_answer(error)
            else:
                self._bucket_answered()
                # Judged only by what was read just now: a bucket that is away is no sign that
                # the instance is.
                if late := self._too_late():
                    return late
            self._interrupts.sleep(_TICK_SECONDS)

    def _look(self) -> End | None:
        """Read what is new; the run's end when it has come."""
        # The instance first: when it is gone, everything it wrote is readable.
        gone = self._instance_is_gone()
        self._show_phases()
        self._print_log()
        if (status := self._storage.read_json(self._submission.paths.status)) is not None:
            self._print_log()
            self._show_last_phase(status)
            return End(status, EndReason(status["end_reason"]), status.get("message", ""))
        return End(None, EndReason.INSTANCE_LOST, gone) if gone else None

    def _bucket_did_not_answer(self, error: StorageError) -> None:
        if not error.transient or time.time() > self._submission.deadline:
            raise following_lost(self._submission, error) from error
        if not self._bucket_is_away:
            self._bucket_is_away = True
            self._console.warn(f"{error}\nThe run goes on; following goes on when it answers")

    def _bucket_answered(self) -> None:
        if self._bucket_is_away:
            self._bucket_is_away = False
            self._console.warn("the bucket answers again")

    def _heed_signals(self) -> None:
        code = self._interrupts.detach_exit_code
        if code is not None:
            raise Detached(
                f"detached from run {self._submission.run_id}; it goes on, and its instance "
                f"{self._submission.instance!r} deletes itself at the end. Come back with:\n"
                f"  mlflow-gce attach {self._submission.run_id}",
                exit_code=code,
            )
        if self._interrupts.wants_cancel and self._cancelled_at is None:
            self._console.warn(
                "cancelling: the training is ended and its results are saved; "
                "Ctrl-C once more leaves without waiting"
            )
            if request_cancel(self._submission, self._storage, self._compute):
                self._cancelled_at = time.monotonic()

    def _instance_is_gone(self) -> str | None:
        """What became of the instance, or None while it is there (or cannot be asked)."""
        if time.monotonic() - self._instance_checked_at < _INSTANCE_CHECK_SECONDS:
            return None
        self._instance_checked_at = time.monotonic()
        name = self._submission.instance
        try:
            status = self._compute.get(self._submission.zone, name).get("status")
        except InstanceNotFound:
            return f"instance {name!r} no longer exists (404), and it left no status"
        except ComputeError:
            return None  # no answer is no news; the bucket still tells how the run goes
        return f"instance {name!r} is {status}, and it left no status" if status in _GONE else None

    def _too_late(self) -> End | None:
        if not self._shown and time.time() > self._boot_deadline:
            return End(None, EndReason.BOOT_TIMEOUT, "the instance gave no sign of life in time")
        if self._cancelled_at is not None and self._life.phase is not Phase.COLLECTING:
            waited = time.monotonic() - self._cancelled_at
            is_silent = time.time() - self._heartbeat_at > _SILENCE_SECONDS
            if waited > 2 * self._grace_seconds + 60 and is_silent:
                detail = f"the instance did not react to the cancel within {waited:.0f} s"
                return End(None, EndReason.CANCELLED, detail)
        if time.time() > self._submission.deadline:
            return End(None, EndReason.DEADLINE, "the instance's deadline has passed")
        return None

    def _print_log(self) -> None:
        for number, piece in self._storage.read_log(self._submission.paths, self._log_piece):
            self._console.log(piece)
            self._log_piece = number

    def _show_phases(self) -> None:
        heartbeat = self._storage.read_json(self._submission.paths.heartbeat)
        self._heartbeat_at = float((heartbeat or {}).get("at", 0.0))
        phases = (heartbeat or {}).get("phases", [])
        for item in phases[len(self._shown) :]:
            self._enter(item["phase"], float(item["at"]))

    def _enter(self, name: str, at: float) -> None:
        if self._shown:
            previous, since = self._shown[-1]
            self._console.phase(previous, at - since)
        else:
            self._console.phase("booted", at - self._submission.created_at)
        self._shown.append((name, at))
        self._life.catch_up(_PHASES[name], at=at)
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


def request_cancel(submission: Submission, storage: Storage, compute: Compute) -> bool:
    """Ask the agent to end the run: at once through metadata, within seconds through the bucket.

    Returns:
        Whether one of the two took the wish.
    """
    is_asked = False
    with contextlib.suppress(StorageError):
        storage.put(submission.paths.cancel, b"cancel\n")
        is_asked = True
    with contextlib.suppress(ComputeError):
        compute.set_metadata(submission.zone, submission.instance, CANCEL_ATTRIBUTE, "1")
        is_asked = True
    return is_asked
