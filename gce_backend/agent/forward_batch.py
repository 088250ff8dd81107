"""Metrics, parameters and tags of a journal as entries of a ``log-batch`` request."""

from __future__ import annotations

from collections.abc import Callable

from .entities import Json
from .records import Item

_METRIC_FIELDS = (
    "key",
    "value",
    "timestamp",
    "step",
    "model_id",
    "dataset_name",
    "dataset_digest",
    "run_id",
)


def body_of(run_id: str, items: list[Item]) -> Json:
    body: Json = {"run_id": run_id}
    for item in items:
        body.setdefault(item.kind, []).append(item.entity)
    return body


def _item(kind: str, entity: Json, seq: int) -> Item:
    return Item(kind, str(entity["key"]), entity.get("value"), entity, seq)


def _from_batch(body: Json, seq: int) -> list[Item]:
    return [
        _item(kind, entity, seq)
        for kind in ("params", "metrics", "tags")
        for entity in body.get(kind) or ()
    ]


def _from_metric(body: Json, seq: int) -> list[Item]:
    return [_item("metrics", {key: body[key] for key in _METRIC_FIELDS if key in body}, seq)]


def _from_pair(kind: str) -> Callable[[Json, int], list[Item]]:
    def collect(body: Json, seq: int) -> list[Item]:
        return [_item(kind, {"key": body["key"], "value": body.get("value", "")}, seq)]

    return collect


COLLECTED: dict[str, Callable[[Json, int], list[Item]]] = {
    "runs/log-batch": _from_batch,
    "runs/log-metric": _from_metric,
    "runs/log-parameter": _from_pair("params"),
    "runs/set-tag": _from_pair("tags"),
}
