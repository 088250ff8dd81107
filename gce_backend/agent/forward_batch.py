"""Metrics, parameters and tags of one run on their way into one ``log-batch`` request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .entities import Json

# The SQL store's limits for one log-batch.
MAX_ITEMS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100

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


@dataclass(frozen=True)
class Item:
    kind: str  # "metrics", "params" or "tags", as log-batch calls them
    entity: Json
    seq: int


@dataclass
class Batch:
    items: list[Item] = field(default_factory=list)
    # Where in items a key stands.
    params: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)

    def add(self, item: Item) -> bool:
        """False if the batch must be sent first."""
        key = str(item.entity["key"])
        if item.kind == "tags" and key in self.tags:
            self.items[self.tags[key]] = item  # the last one wins, as in the store
            return True
        if item.kind == "params" and key in self.params:
            known = self.items[self.params[key]].entity
            return bool(known.get("value") == item.entity.get("value"))
        if (
            len(self.items) >= MAX_ITEMS
            or (item.kind == "params" and len(self.params) >= MAX_PARAMS)
            or (item.kind == "tags" and len(self.tags) >= MAX_TAGS)
        ):
            return False
        if item.kind != "metrics":
            (self.params if item.kind == "params" else self.tags)[key] = len(self.items)
        self.items.append(item)
        return True


def body_of(run_id: str, items: list[Item]) -> Json:
    body: Json = {"run_id": run_id}
    for item in items:
        body.setdefault(item.kind, []).append(item.entity)
    return body


def parts(items: list[Item]) -> list[list[Item]]:
    """By kind first, since one bad parameter says nothing about metrics; then in halves."""
    kinds = [[item for item in items if item.kind == k] for k in ("params", "metrics", "tags")]
    kinds = [part for part in kinds if part]
    if len(kinds) > 1:
        return kinds
    middle = len(items) // 2
    return [items[:middle], items[middle:]]


def _from_batch(body: Json, seq: int) -> list[Item]:
    return [
        Item(kind, entity, seq)
        for kind in ("params", "metrics", "tags")
        for entity in body.get(kind) or ()
    ]


def _from_metric(body: Json, seq: int) -> list[Item]:
    return [Item("metrics", {key: body[key] for key in _METRIC_FIELDS if key in body}, seq)]


def _from_pair(kind: str) -> Callable[[Json, int], list[Item]]:
    def collect(body: Json, seq: int) -> list[Item]:
        return [Item(kind, {"key": body["key"], "value": body.get("value", "")}, seq)]

    return collect


COLLECTED: dict[str, Callable[[Json, int], list[Item]]] = {
    "runs/log-batch": _from_batch,
    "runs/log-metric": _from_metric,
    "runs/log-parameter": _from_pair("params"),
    "runs/set-tag": _from_pair("tags"),
}
