"""What an attempt used, as metrics of its run: seconds of each part, and USD.

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

Client and agent write the same, from the agent's ``status.json`` and what the client left on the
run. What is not known is left out. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "gce/"
COST = f"{PREFIX}cost_usd"
IMAGE_TAG = "gce.image"

_LIVED = f"{PREFIX}seconds_instance"
_SPANS = {
    "boot": ("inserted", "fetching"),
    "environment": ("fetching", "running"),
    "training": ("running", "ended"),
    "saving": ("ended", "written"),
    "instance": ("inserted", "written"),
}
_MINIMUM_BILLED_SECONDS = 60  # cloud.google.com/compute/vm-instance-pricing


def usd(usd_per_hour: float, seconds: float) -> float:
    """For an instance that lived ``seconds``; Compute Engine bills at least a minute."""
    return usd_per_hour * max(seconds, _MINIMUM_BILLED_SECONDS) / 3600


def seconds(status: Mapping[str, Any], inserted_at: float) -> dict[str, float]:
    """How long each part of the attempt took; parts that it did not reach are left out.

    Args:
        inserted_at: unix seconds just before the insert; 0 when that is not known.
    """
    began: dict[str, float] = {}
    for item in status.get("phases", []):
        began.setdefault(item["phase"], float(item["at"]))
    began["inserted"], began["written"] = inserted_at, float(status["written_at"])
    began["ended"] = float(status.get("ended_at") or 0)
    return {
        f"{PREFIX}seconds_{name}": round(max(0.0, began[end] - began[start]), 3)
        for name, (start, end) in _SPANS.items()
        if began.get(start) and began.get(end)
    }


def cost(metrics: Mapping[str, float], usd_per_hour: float | None) -> float | None:
    """What the attempt cost by what ``seconds`` gave; None when its price or time is not known."""
    lived = metrics.get(_LIVED)
    if usd_per_hour is None or lived is None:
        return None
    return round(usd(usd_per_hour, lived), 6)


def cost_before(attempt: int, history: Iterable[tuple[int, float]]) -> float:
    """What the attempts before ``attempt`` have cost together.

    Args:
        history: step and value of every point of ``COST``.
    """
    before = [(step, value) for step, value in history if step < attempt]
    return max(before)[1] if before else 0.0
