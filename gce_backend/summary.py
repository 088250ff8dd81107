"""A run that has ended, in a few lines: how, what it cost, where everything is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gce_backend.agent.paths import RUN_LABEL
from gce_backend.compute import Compute
from gce_backend.console import Console
from gce_backend.errors import GceBackendError, StorageError
from gce_backend.follow import End
from gce_backend.lifecycle import OUTCOME, EndReason
from gce_backend.prices import Price
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

_MOST_METRICS = 8
_LOG_TAIL_BYTES = 4_000


@dataclass(frozen=True)
class Result:
    """How a run ended. ``exit_code``: what its command should exit with; 0 only for success."""

    reason: EndReason
    exit_code: int
    message: str


def result_of(submission: Submission, end: End, serial: str, storage: Storage) -> Result:
    """What a command says of a run that has ended, and exits with.

    Args:
        serial: the instance's serial output, for want of a log.
    """
    if end.reason is EndReason.SUCCEEDED:
        return Result(end.reason, 0, "")
    tail = log_tail(storage, submission) or serial[-_LOG_TAIL_BYTES:]
    message = (
        f"run {submission.run_id} ended: {end.reason.value.replace('_', ' ')}"
        f"{f': {end.detail}' if end.detail else ''}\n"
        "No instance of it exists; nothing bills. "
        f"Log, journal and what was uploaded: {submission.uri}\n"
        "To see the whole log, and to fetch the files, run:\n"
        f"  mlflow-gce logs {submission.run_id}\n  mlflow-gce pull {submission.run_id}"
    )
    code = _exit_code(end.reason, end.status)
    return Result(end.reason, code, f"{message}\n{_indented(tail)}" if tail else message)


def result_before(
    submission: Submission, reason: EndReason, status: dict[str, Any] | None
) -> Result:
    """What is said of a run that had ended, and has no instance, before anybody asked."""
    return Result(
        reason,
        _exit_code(reason, status),
        f"run {submission.run_id} had ended before: {reason.value.replace('_', ' ')}. "
        "No instance of it exists",
    )


def _exit_code(reason: EndReason, status: dict[str, Any] | None) -> int:
    if reason is EndReason.EXITED_NONZERO:
        # Any other end has the entry point's code from the signal that ended it, not from itself.
        return (status or {}).get("exit_code") or 1
    return {EndReason.SUCCEEDED: 0, EndReason.CANCELLED: 130}.get(reason, 1)


def summarize(
    submission: Submission,
    reason: EndReason,
    seconds: float,
    *,
    tracking: Tracking,
    compute: Compute,
    console: Console,
) -> None:
    """Print the summary; whatever it cannot learn changes nothing about how the run ended.

    Args:
        seconds: how long the run's instances have existed.
    """
    try:
        run = tracking.get_run(submission.run_id)
        attempts = f", {submission.attempt} attempts" if submission.attempt > 1 else ""
        rows = {
            "status": f"{OUTCOME[reason].mlflow_status} ({reason.value})",
            **headline(run.data.metrics),
            "instance": f"{seconds:.1f} s from insert to deletion{attempts}"
            f"{_cost(submission, seconds)}",
            "artifacts": str(run.info.artifact_uri),
            "log, status": submission.uri,
        }
        console.table(f"run {run.info.run_name} ({run.info.run_id})", rows)
        left = sum(1 for _ in compute.list(f"labels.{RUN_LABEL}={submission.run_id}"))
        console.say(f"instances left: {left}")
    except GceBackendError as error:
        console.warn(f"no summary: {error}")


def log_tail(storage: Storage, submission: Submission) -> str:
    """The last lines of the training's log, from its last pieces in the bucket."""
    try:
        names = [info.name for info in storage.list(submission.paths.log_dir)]
        tail = b"".join(storage.read(name) or b"" for name in names[-3:])
    except StorageError:
        return ""
    return tail[-_LOG_TAIL_BYTES:].decode("utf-8", "replace")


def _indented(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.rstrip().splitlines()[-40:])


def _cost(submission: Submission, seconds: float) -> str:
    if submission.usd_per_hour is None:
        return ""
    return f", about ${Price(submission.usd_per_hour).cost(seconds):.4f} by list price"


def headline(metrics: dict[str, float]) -> dict[str, str]:
    """The last values of some of the trainer's own metrics: those of no group (``group/name``)
    before others, accuracies before the rest."""
    not_its_own = ("system/", "gce/")
    own = {name: value for name, value in metrics.items() if not name.startswith(not_its_own)}
    ordered = sorted(own, key=lambda name: ("/" in name, "accuracy" not in name, name))
    return {name: f"{own[name]:.6g}" for name in ordered[:_MOST_METRICS]}
