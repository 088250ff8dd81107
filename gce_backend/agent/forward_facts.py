"""What the instance was, as metrics of the run: how long each part took, and what it cost.

Derived from ``status.json`` and from what the client left on the run, exactly as the client does
(``facts.py`` there, which explains the names); whoever writes them writes the same.
"""

from __future__ import annotations

from typing import Any

from .entities import Json
from .forward_server import Server, tags_of

PREFIX = "gce/"
COST = "gce/cost_usd"
IMAGE_TAG = "gce.image"
_CREATED_TAG = "gce.created_at"  # unix seconds just before the insert
_PRICE_TAG = "gce.usd_per_hour"
_MINIMUM_BILLED_S = 60
_SPANS = {
    "boot": ("inserted", "fetching"),
    "environment": ("fetching", "running"),
    "training": ("running", "ended"),
    "saving": ("ended", "written"),
    "instance": ("inserted", "written"),
}


def record(server: Server, status: Json) -> None:
    """Write what ``status`` tells. Raises ServerAway."""
    run = server.run()
    tags, attempt = tags_of(run), int(status["attempt"])
    metrics = _seconds(status, tags)
    lived, price = metrics.get(f"{PREFIX}seconds_instance"), tags.get(_PRICE_TAG)
    if lived is not None and price:
        cost = float(price) * max(lived, _MINIMUM_BILLED_S) / 3600
        metrics[COST] = round(cost, 6) + _cost_before(server, attempt)
    at = round(float(status["written_at"]) * 1000)
    body: Json = {
        "run_id": server.run_id,
        "metrics": [
            {"key": key, "value": value, "timestamp": at, "step": attempt}
            for key, value in metrics.items()
        ],
    }
    if image := status.get("image"):
        body["tags"] = [{"key": IMAGE_TAG, "value": str(image)}]
    server.read(lambda: server.send("POST", "runs/log-batch", body))


def _seconds(status: Json, tags: dict[str, str]) -> dict[str, float]:
    began: dict[str, Any] = {}
    for item in status.get("phases", []):
        began.setdefault(item["phase"], float(item["at"]))
    began["inserted"] = float(tags.get(_CREATED_TAG) or 0)
    began["written"] = float(status["written_at"])
    began["ended"] = float(status.get("ended_at") or 0)
    return {
        f"{PREFIX}seconds_{name}": round(max(0.0, began[end] - began[start]), 3)
        for name, (start, end) in _SPANS.items()
        if began.get(start) and began.get(end)
    }


def _cost_before(server: Server, attempt: int) -> float:
    """What the attempts before have cost together."""
    if attempt <= 1:
        return 0.0
    query = {"run_id": server.run_id, "metric_key": COST}
    history = server.read(lambda: server.send("GET", "metrics/get-history", query))
    points = [(int(p.get("step", 0)), float(p["value"])) for p in history.get("metrics") or ()]
    before = [(step, value) for step, value in points if step < attempt]
    return max(before)[1] if before else 0.0
