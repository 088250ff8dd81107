"""What the instance was, on the run: numbers as metrics, which MLflow's table sorts; words as tags.

===========================  ====================================================================
metric, one step an attempt  what, in seconds or USD
===========================  ====================================================================
``gce/seconds_boot``         from the insert to the agent's start
``gce/seconds_environment``  fetching the project, building its environment
``gce/seconds_training``     the entry point
``gce/seconds_saving``       from its end until everything was in the bucket
``gce/seconds_instance``     all of these
``gce/cost_usd``             this attempt and those before, by the list price of ``gce.price_date``
===========================  ====================================================================

Derived from the submission and the agent's ``status.json`` alone, so whoever writes them, and
however often, writes the same. What is not known is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gce_backend.prices import Price
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

PREFIX = "gce/"
COST = "gce/cost_usd"


def record(tracking: Tracking, submission: Submission, status: Mapping[str, Any] | None) -> None:
    """Write what the attempt's status tells.

    Raises:
        TrackingError: the store does not answer.
    """
    if not status or status.get("attempt", submission.attempt) != submission.attempt:
        return
    metrics = seconds(submission, status)
    if (cost := _cost(submission, metrics)) is not None:
        metrics[COST] = cost + _cost_before(tracking, submission)
    at = round(float(status["written_at"]) * 1000)
    tracking.log_metrics(submission.run_id, metrics, step=submission.attempt, at_ms=at)
    if image := status.get("image"):
        tracking.set_tags(submission.run_id, {"gce.image": str(image)})


def seconds(submission: Submission, status: Mapping[str, Any]) -> dict[str, float]:
    """How long each part of the attempt took; parts that it did not reach are left out."""
    began: dict[str, float] = {}
    for item in status.get("phases", []):
        began.setdefault(item["phase"], float(item["at"]))
    began["inserted"], began["written"] = submission.created_at, float(status["written_at"])
    if status.get("ended_at"):
        began["ended"] = float(status["ended_at"])
    spans = {
        "boot": ("inserted", "fetching"),
        "environment": ("fetching", "running"),
        "training": ("running", "ended"),
        "saving": ("ended", "written"),
        "instance": ("inserted", "written"),
    }
    return {
        f"{PREFIX}seconds_{name}": round(max(0.0, began[end] - began[start]), 3)
        for name, (start, end) in spans.items()
        if began.get(start) and began.get(end)
    }


def _cost(submission: Submission, metrics: Mapping[str, float]) -> float | None:
    lived = metrics.get(f"{PREFIX}seconds_instance")
    if submission.usd_per_hour is None or lived is None:
        return None
    return round(Price(submission.usd_per_hour).cost(lived), 6)


def _cost_before(tracking: Tracking, submission: Submission) -> float:
    """What the attempts before have cost together."""
    if submission.attempt <= 1:
        return 0.0
    history = tracking.metric_history(submission.run_id, COST)
    before = [(step, value) for step, value in history if step < submission.attempt]
    return max(before)[1] if before else 0.0
