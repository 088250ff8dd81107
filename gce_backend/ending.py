"""The last steps of one attempt: results proven, instance deleted, 404 seen; in that order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gce_backend.compute import Compute
from gce_backend.console import Console
from gce_backend.errors import CleanupError, ComputeError, ResultsUnverified
from gce_backend.follow import End
from gce_backend.lifecycle import EndReason, Phase
from gce_backend.proof import unproven
from gce_backend.request import delete, give_up
from gce_backend.storage import Storage
from gce_backend.submission import Submission


class Ending:
    """The end of one attempt.

    Args:
        entered: told of every phase, with unix seconds.
        try_to_write_end: tells MLflow how the run ended, and raises nothing.
    """

    def __init__(
        self,
        submission: Submission,
        storage: Storage,
        compute: Compute,
        *,
        entered: Callable[[Phase, float], None],
        try_to_write_end: Callable[[EndReason, dict[str, Any] | None], None],
        console: Console,
    ) -> None:
        self._submission = submission
        self._storage = storage
        self._compute = compute
        self._enter = entered
        self._try_to_write_end = try_to_write_end
        self._console = console

    def prove_and_delete(self, end: End, *, goes_on: bool) -> str:
        """Results proven, instance deleted, 404 seen; in that order.

        Returns:
            The instance's serial output where it left no status; "" otherwise.
        """
        here = self._submission
        # What a preempted attempt could not save went with its instance: there is nothing to keep.
        is_taken = goes_on or end.reason is EndReason.PREEMPTED
        if end.status is not None and not is_taken:
            if missing := self._unproven(end.status):
                self._keep(missing, end)
        elif end.reason is EndReason.INSTANCE_LOST and self._is_there():
            self._keep([f"{here.uri}/status.json"], end)
        if end.reason is EndReason.SUBMIT_FAILED:
            if goes_on:
                return ""  # there is none; one of its name may be another client's by now
            # An insert that is still under way makes an instance that ends itself.
            give_up(self._storage, here.paths)
        serial = "" if end.status else self._compute.serial_output(here.zone, here.instance)
        try:
            self.delete(end.at)
        except CleanupError:
            if not goes_on:
                self._try_to_write_end(end.reason, end.status)
            raise
        return serial

    def proven_reason(self, status: dict[str, Any]) -> EndReason:
        """How a run ended by its status.json; without proof of its results it is no success."""
        reason = EndReason(status["end_reason"])
        if reason is not EndReason.PREEMPTED and self._unproven(status):
            return EndReason.RESULTS_UNVERIFIED
        return reason

    def delete(self, last_seen: float = 0.0) -> None:
        """Delete the instance; said to be done only after a GET said 404.

        Args:
            last_seen: unix seconds of the last that is known of it. When it has gone without us,
                its time ends then, and not when somebody looks again; 0: it ends now.

        Raises:
            CleanupError: it may still exist and bill.
        """
        gone_at = last_seen if last_seen and not self._is_there() else float("inf")
        self._enter(Phase.DELETING, min(gone_at, time.time()))
        started = time.monotonic()
        try:
            delete(self._compute, self._submission)
        except CleanupError:
            self._enter(Phase.ORPHANED, time.time())
            raise
        self._enter(Phase.DELETED, min(gone_at, time.time()))
        self._console.phase(
            "deleted", time.monotonic() - started, f"{self._submission.instance}: GET says 404"
        )

    def _unproven(self, status: dict[str, Any]) -> list[str]:
        """What the agent or the bucket itself says is missing; empty when everything is there."""
        started = time.monotonic()
        missing = unproven(self._storage, self._submission.paths, status)
        if not missing:
            self._console.phase("verified", time.monotonic() - started)
        return missing

    def _keep(self, missing: list[str], end: End) -> None:
        """Leave the instance alone, tell MLflow, and say what to do."""
        here = self._submission
        self._try_to_write_end(EndReason.RESULTS_UNVERIFIED, end.status)
        lines = "\n".join(f"  {line}" for line in missing[:20])
        raise ResultsUnverified(
            f"run {here.run_id}: its results are not proven to be in the bucket:\n{lines}\n"
            f"{self._what_bills(end)}",
            missing,
        )

    def _what_bills(self, end: End) -> str:
        here = self._submission
        if not self._is_there():
            return (
                f"Instance {here.instance!r} no longer exists; nothing bills. To fetch what is in "
                f"the bucket, run:\n  mlflow-gce pull {here.run_id}"
            )
        if end.status is None:
            return (
                f"{end.detail}. Its disk is kept, and bills, with what had not been uploaded. "
                "To boot it again, so that its agent uploads the rest and deletes it, run:\n"
                f"  gcloud compute instances start {here.where}\n"
                f"  mlflow-gce attach {here.run_id}"
            )
        return (
            f"Instance {here.instance!r} in {here.zone} is kept and still bills, until "
            f"{here.deadline_text()} at the latest. To fetch the files from it, then delete it, "
            f"run:\n  {_rescue_command(here)}\n"
            f"  mlflow-gce stop --now {here.run_id}"
        )

    def _is_there(self) -> bool:
        """Whether the instance exists, or may: only a 404 says that it does not."""
        try:
            return self._compute.exists(self._submission.zone, self._submission.instance)
        except ComputeError:
            return True


def _rescue_command(submission: Submission) -> str:
    """What copies the files off a kept instance; without SSH of ours, gcloud's may get through."""
    if submission.ssh_via != "none":
        return f"mlflow-gce rescue {submission.run_id}"
    where = f"--zone {submission.zone} --project {submission.project}"
    return (
        f"gcloud compute scp --recurse --tunnel-through-iap {where} "
        f"{submission.instance}:/var/lib/mlflow-gce rescued"
    )
