"""What the instance was, on the run: numbers as metrics, which MLflow's table sorts; words as tags.

``agent/usage.py`` explains the metrics. Whoever writes them, and however often, writes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gce_backend.agent.usage import COST, IMAGE_TAG, cost, cost_before, seconds
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking


def record(tracking: Tracking, submission: Submission, status: Mapping[str, Any] | None) -> None:
    """Write what the attempt's status tells.

    Raises:
        TrackingError: the store does not answer.
    """
    if not status or status.get("attempt", submission.attempt) != submission.attempt:
        return
    metrics = seconds(status, submission.created_at)
    if (usd := cost(metrics, submission.usd_per_hour)) is not None:
        metrics[COST] = usd + _cost_before(tracking, submission)
    at = round(float(status["written_at"]) * 1000)
    tracking.log_metrics(submission.run_id, metrics, step=submission.attempt, at_ms=at)
    if image := status.get("image"):
        tracking.set_tags(submission.run_id, {IMAGE_TAG: str(image)})


def _cost_before(tracking: Tracking, submission: Submission) -> float:
    if submission.attempt <= 1:
        return 0.0
    history = tracking.metric_history(submission.run_id, COST)
    return cost_before(submission.attempt, history)
