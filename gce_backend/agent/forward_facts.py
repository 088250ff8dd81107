"""What the instance was, as metrics of the run; ``usage.py`` explains them."""

from __future__ import annotations

from .entities import Json
from .forward_server import Server, tags_of
from .usage import COST, IMAGE_TAG, cost, cost_before, seconds

_CREATED_TAG = "gce.created_at"  # unix seconds just before the insert
_PRICE_TAG = "gce.usd_per_hour"


def record(server: Server, status: Json) -> None:
    """Write what ``status`` tells. Raises ServerAway."""
    run = server.run()
    tags, attempt = tags_of(run), int(status["attempt"])
    metrics = seconds(status, float(tags.get(_CREATED_TAG) or 0))
    price = tags.get(_PRICE_TAG)
    if (usd := cost(metrics, float(price) if price else None)) is not None:
        metrics[COST] = usd + _cost_before(server, attempt)
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


def _cost_before(server: Server, attempt: int) -> float:
    if attempt <= 1:
        return 0.0
    query = {"run_id": server.run_id, "metric_key": COST}
    history = server.read(lambda: server.send("GET", "metrics/get-history", query))
    points = history.get("metrics") or ()
    return cost_before(attempt, ((int(p.get("step", 0)), float(p["value"])) for p in points))
