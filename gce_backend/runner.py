"""The heart: follow a run to its end, prove its results, delete its instance, tell MLflow.

The order of the last steps is the product's promise: results proven, then the delete, then a GET
that says 404, and only then the words "deleted" and "finished". The tracking store comes last; an
instance never waits for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from gce_backend.agent.paths import RUN_LABEL
from gce_backend.compute import Compute
from gce_backend.config import Endpoints
from gce_backend.console import Console
from gce_backend.errors import (
    CleanupError,
    ComputeError,
    GceBackendError,
    ResultsUnverified,
    StorageError,
)
from gce_backend.follow import End, Follower, following_lost, request_cancel
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import OUTCOME, EndReason, Lifecycle, Phase
from gce_backend.livesync import LiveSync, until_store_answers
from gce_backend.prices import Price
from gce_backend.request import delete
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.sync import JournalApplier
from gce_backend.tracking import Tracking

_LOG_TAIL_BYTES = 4_000
_SYNC_SECONDS = 120.0


@dataclass(frozen=True)
class Limits:
    """How patient a follower is, in seconds; the defaults are for a run submitted earlier."""

    boot_seconds: float = 600.0
    grace_seconds: float = 30.0
    sync_seconds: float = _SYNC_SECONDS


@dataclass(frozen=True)
class Result:
    """How a run ended. ``exit_code``: what its command should exit with; 0 only for success."""

    reason: EndReason
    exit_code: int
    message: str


class Runner:
    """One submitted run, followed from this process."""

    def __init__(
        self,
        submission: Submission,
        *,
        endpoints: Endpoints,
        console: Console,
        limits: Limits = Limits(),
    ) -> None:
        self.submission = submission
        self._console = console
        self._limits = limits
        self._storage = Storage(submission.bucket, project=submission.project)
        self._compute = Compute(submission.project, endpoint=endpoints.compute)
        self._tracking = Tracking(submission.tracking_uri)
        self._applier = JournalApplier(
            self._storage,
            submission.paths,
            tracking_uri=submission.tracking_uri,
            run_id=submission.run_id,
        )
        self._life = Lifecycle(phase=Phase.CREATING)

    def follow(self, interrupts: Interrupts) -> Result:
        """Follow to the end; return once the instance is gone and MLflow knows how it ended.

        Raises:
            Detached: a signal asked to leave; the run goes on by itself.
            ResultsUnverified: the bucket lacks something; the instance is kept until its deadline.
            CleanupError: an instance may still bill.
            FollowingLost: the bucket refused for good; the run goes on by itself.
            TrackingError: the store stayed away; everything is safe in the bucket.
        """
        with interrupts.deferred():
            with LiveSync(
                self._applier, self._tracking, self.submission.run_id, self._console.warn
            ) as live:
                end = Follower(
                    self.submission,
                    self._storage,
                    self._compute,
                    life=self._life,
                    console=self._console,
                    interrupts=interrupts,
                    live=live,
                    boot_seconds=self._limits.boot_seconds,
                    grace_seconds=self._limits.grace_seconds,
                ).follow()
            try:
                serial = self._prove_and_delete(end)
            except ResultsUnverified:
                raise
            except StorageError as error:
                raise following_lost(self.submission, error) from error
            result = self._result(end, serial)
            self._write_end(end.reason, end.status)
            self._summarize(end)
            return result

    def sync(self) -> None:
        """Apply what the bucket has of the run to the store; its end too, when it has ended."""
        status = self._storage.read_json(self.submission.paths.status)
        if status is None:
            self._applier.apply_new()
        else:
            self._write_end(self._proven_reason(status), status)

    def cancel(self, interrupts: Interrupts) -> Result:
        """Ask for the end and follow until it is reached."""
        request_cancel(self.submission, self._storage, self._compute)
        return self.follow(interrupts)

    def delete_now(self) -> None:
        """Delete the instance without waiting for anything, and write down how the run ended.

        What had not reached the bucket is lost.
        """
        self._delete()
        status = self._storage.read_json(self.submission.paths.status)
        reason = self._proven_reason(status) if status else EndReason.CANCELLED
        self._write_end(reason, status)

    def _prove_and_delete(self, end: End) -> str:
        """Results proven, instance deleted, 404 seen; in that order.

        Returns:
            The instance's serial output where it left no status; "" otherwise.
        """
        here = self.submission
        self._life.end(end.reason)
        if end.status is not None:
            if missing := self._unproven(end.status):
                self._keep(missing, end)
        elif end.reason is EndReason.INSTANCE_LOST and self._is_there():
            self._keep([f"{here.uri}/status.json"], end)
        serial = "" if end.status else self._compute.serial_output(here.zone, here.instance)
        try:
            self._delete()
        except CleanupError:
            self._try_to_write_end(end.reason, end.status)
            raise
        return serial

    def _proven_reason(self, status: dict[str, Any]) -> EndReason:
        """How a run ended by its status.json; without proof of its results it is no success."""
        if self._unproven(status):
            return EndReason.RESULTS_UNVERIFIED
        return EndReason(status["end_reason"])

    def _unproven(self, status: dict[str, Any]) -> list[str]:
        """What the agent or the bucket itself says is missing; empty when everything is there."""
        if not status.get("verified"):
            return list(status.get("missing") or ["the agent could not verify its uploads"])
        manifest = self._storage.read_json(self.submission.paths.manifest)
        if manifest is None:
            return [f"{self.submission.uri}/manifest.json"]
        started = time.monotonic()
        missing = self._storage.verify(manifest)
        if not missing:
            count, size = len(manifest["objects"]), sum(o["size"] for o in manifest["objects"])
            self._console.phase(
                "verified", time.monotonic() - started, f"{count} objects, {size / 1e6:.1f} MB"
            )
        return missing

    def _keep(self, missing: list[str], end: End) -> None:
        """Leave the instance alone, tell MLflow, and say what to do."""
        here = self.submission
        self._try_to_write_end(EndReason.RESULTS_UNVERIFIED, end.status)
        lines = "\n".join(f"  {line}" for line in missing[:20])
        raise ResultsUnverified(
            f"run {here.run_id}: its results are not proven to be in the bucket:\n{lines}\n"
            f"{self._what_bills(end)}",
            missing,
        )

    def _what_bills(self, end: End) -> str:
        here = self.submission
        if not self._is_there():
            return f"Instance {here.instance!r} no longer exists; nothing bills."
        where = f"--zone {here.zone} --project {here.project}"
        if end.status is None:
            return (
                f"{end.detail}. Its disk is kept, and bills, with what had not been uploaded. "
                "To boot it again, so that its agent uploads the rest and deletes it, run:\n"
                f"  gcloud compute instances start {here.instance} {where}\n"
                f"  mlflow-gce attach {here.run_id}"
            )
        deadline = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(here.deadline))
        return (
            f"Instance {here.instance!r} in {here.zone} is kept and still bills, until {deadline} "
            "at the latest. To fetch the files from it, then delete it, run:\n"
            f"  gcloud compute scp --recurse {where} {here.instance}:/var/lib/mlflow-gce rescued\n"
            f"  mlflow-gce stop --now {here.run_id}"
        )

    def _is_there(self) -> bool:
        """Whether the instance exists, or may: only a 404 says that it does not."""
        try:
            return self._compute.exists(self.submission.zone, self.submission.instance)
        except ComputeError:
            return True

    def _delete(self) -> None:
        self._life.catch_up(Phase.DELETING, at=time.time())
        started = time.monotonic()
        try:
            delete(self._compute, self.submission)
        except CleanupError:
            self._life.advance(Phase.ORPHANED, at=time.time())
            raise
        self._life.advance(Phase.DELETED, at=time.time())
        self._console.phase(
            "deleted", time.monotonic() - started, f"{self.submission.instance}: GET says 404"
        )

    def _result(self, end: End, serial: str) -> Result:
        if end.reason is EndReason.SUCCEEDED:
            return Result(end.reason, 0, "")
        code = (end.status or {}).get("exit_code")
        exit_code = 130 if end.reason is EndReason.CANCELLED else (code or 1)
        tail = self._log_tail() or serial[-_LOG_TAIL_BYTES:]
        here = self.submission
        message = (
            f"run {here.run_id} ended: {end.reason.value.replace('_', ' ')}. {end.detail}\n"
            f"The instance has been deleted. Log, journal and what was uploaded: {here.uri}"
        )
        return Result(end.reason, exit_code, f"{message}\n{_indented(tail)}" if tail else message)

    def _write_end(self, reason: EndReason, status: dict[str, Any] | None) -> None:
        """The journal's rest and how the run ended, into the store as soon as it answers."""
        run_id = self.submission.run_id
        at = float(status["ended_at"]) if status and status.get("ended_at") else None
        # Files are moved to their final names only once all are proven to be there: an agent that
        # is not done uploads under the old ones.
        proven = reason is not EndReason.RESULTS_UNVERIFIED
        apply = self._applier.finish if proven else self._applier.apply_new

        def write() -> None:
            apply()
            self._tracking.terminate(run_id, reason, at=at)

        until_store_answers(write, run_id, seconds=self._limits.sync_seconds)

    def _try_to_write_end(self, reason: EndReason, status: dict[str, Any] | None) -> None:
        """As ``_write_end``, where something worse is about to be told."""
        try:
            self._write_end(reason, status)
        except GceBackendError as error:
            self._console.warn(f"MLflow does not know yet how the run ended: {error}")

    def _summarize(self, end: End) -> None:
        """A look back; whatever it cannot learn changes nothing about how the run ended."""
        try:
            self._print_summary(end)
        except GceBackendError as error:
            self._console.warn(f"no summary: {error}")

    def _print_summary(self, end: End) -> None:
        run = self._tracking.get_run(self.submission.run_id)
        seconds = self._life.history[-1].at - self.submission.created_at
        rows = {
            "status": f"{OUTCOME[end.reason].mlflow_status} ({end.reason.value})",
            **_metrics(run.data.metrics),
            "instance": f"{seconds:.1f} s from insert to deletion{self._cost(seconds)}",
            "artifacts": str(run.info.artifact_uri),
            "log, status": self.submission.uri,
        }
        self._console.table(f"run {run.info.run_name} ({run.info.run_id})", rows)
        self._console.say(f"instances left: {self._instances_left()}")

    def _cost(self, seconds: float) -> str:
        if self.submission.usd_per_hour is None:
            return ""
        usd = Price(self.submission.usd_per_hour).cost(seconds)
        return f", about ${usd:.4f} by list price"

    def _instances_left(self) -> int:
        return sum(1 for _ in self._compute.list(f"labels.{RUN_LABEL}={self.submission.run_id}"))

    def _log_tail(self) -> str:
        """The last lines of the training's log, from its last pieces in the bucket."""
        try:
            names = [info.name for info in self._storage.list(self.submission.paths.log_dir)]
            tail = b"".join(self._storage.read(name) or b"" for name in names[-3:])
        except StorageError:
            return ""
        return tail[-_LOG_TAIL_BYTES:].decode("utf-8", "replace")


def _metrics(metrics: dict[str, float]) -> dict[str, str]:
    """The last values of the trainer's own metrics, the accuracies first."""
    own = {name: value for name, value in metrics.items() if not name.startswith("system/")}
    ordered = sorted(own, key=lambda name: ("accuracy" not in name, name))
    return {name: f"{own[name]:.6g}" for name in ordered[:8]}


def _indented(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.rstrip().splitlines()[-40:])
