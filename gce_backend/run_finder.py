"""Runs of this backend in an MLflow store: found by id, by its first characters, or by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gce_backend.lifecycle import EndReason
from gce_backend.prices import Price
from gce_backend.submission import ATTEMPT_TAG, Submission, close_abandoned
from gce_backend.tracking import (
    END_REASON_TAG,
    INSTANCE_TAG,
    MAY_BILL_TAG,
    Tracking,
    resolve_uri,
)

_BEFORE_AN_INSTANCE = {
    EndReason.NO_CAPACITY.value,
    EndReason.QUOTA_EXCEEDED.value,
    EndReason.REFUSED.value,
    EndReason.SUBMIT_FAILED.value,
}


@dataclass(frozen=True)
class RunRecord:
    """A run as the store has it.

    Args:
        status: MLflow's: RUNNING, FINISHED, …
        end_reason: of ``lifecycle.EndReason``; "" while it has none.
        started_at: unix seconds, when the run was made; every attempt keeps it.
        created_at, ended_at: unix seconds; the latter None while it runs.
        cost_usd: by list price from the insert to the end of the training, 0 where there never
            was an instance; None: not known.
    """

    run_id: str
    name: str
    status: str
    end_reason: str
    machine_type: str
    zone: str
    instance: str
    started_at: float
    created_at: float
    ended_at: float | None
    usd_per_hour: float | None
    cost_usd: float | None
    user: str
    experiment_id: str
    artifact_uri: str

    @property
    def is_over(self) -> bool:
        return self.status in ("FINISHED", "FAILED", "KILLED")


def find_submission(run: str, tracking_uri: str | None) -> Submission:
    """The submission of the run with this id, whose id begins so, or that has this name.

    Raises:
        TrackingError: there is none, or more than one (the message lists them).
    """
    return read_run(run, tracking_uri)[0]


def find_run(run: str, tracking_uri: str | None) -> tuple[Submission, RunRecord]:
    """As `find_submission`, with what the store says of it."""
    return read_run(run, tracking_uri)[:2]


def read_run(run: str, tracking_uri: str | None) -> tuple[Submission, RunRecord, dict[str, str]]:
    """As `find_run`, with all its tags."""
    uri = resolve_uri(tracking_uri)
    tracking = Tracking(uri)
    found = tracking.find_run(run)
    close_abandoned(tracking, found)
    return Submission.from_run(found, uri), record(found), dict(found.data.tags)


def latest_runs(
    tracking_uri: str | None, count: int, *, since: float | None = None
) -> list[RunRecord]:
    """The store's runs of this backend, the latest first.

    Args:
        since: unix seconds; only those started after.
    """
    tracking = Tracking(resolve_uri(tracking_uri))
    return [record(run) for run in tracking.runs(count, since=since)]


def record(run: Any) -> RunRecord:
    """Of an MLflow ``Run`` with this backend's tags."""
    tags = run.data.tags
    created_at = float(tags.get("gce.created_at") or run.info.start_time / 1000)
    ended_at = run.info.end_time / 1000 if run.info.end_time else None
    price = float(tags["gce.usd_per_hour"]) if "gce.usd_per_hour" in tags else None
    cost = run.data.metrics.get("gce/cost_usd")
    if cost is None and ended_at is not None:
        if _had_no_instance(tags):
            cost = 0.0
        elif price is not None:
            cost = Price(price).cost(ended_at - created_at)
    return RunRecord(
        run_id=run.info.run_id,
        name=str(run.info.run_name),
        status=str(run.info.status),
        end_reason=tags.get(END_REASON_TAG, ""),
        machine_type=tags.get("gce.machine_type", "")
        + (" spot" if tags.get("gce.spot") == "true" else ""),
        zone=tags.get("gce.zone", ""),
        instance=tags.get(INSTANCE_TAG, ""),
        started_at=run.info.start_time / 1000,
        created_at=created_at,
        ended_at=ended_at,
        usd_per_hour=price,
        cost_usd=cost,
        user=tags.get("mlflow.user", ""),
        experiment_id=str(run.info.experiment_id),
        artifact_uri=str(run.info.artifact_uri),
    )


def _had_no_instance(tags: dict[str, str]) -> bool:
    """Whether a run ended before an instance of it came to be, and that is proven."""
    ended_so = tags.get(END_REASON_TAG, "") in _BEFORE_AN_INSTANCE
    return ended_so and int(tags.get(ATTEMPT_TAG, 1)) == 1 and MAY_BILL_TAG not in tags
