"""Metrics, parameters and tags on their way into one `log-batch` call of the MLflow store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, RunTag

# The SQL store's limits for one log-batch.
MAX_ITEMS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100

Body: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Item:
    kind: Literal["metric", "param", "tag"]
    entity: Metric | Param | RunTag
    seq: int


@dataclass
class Batch:
    """What goes to one run in one call."""

    items: list[Item] = field(default_factory=list)
    # Where in items a key stands.
    params: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)

    def add(self, item: Item) -> bool:
        """False if the batch must be sent first."""
        key = item.entity.key
        if item.kind == "tag" and key in self.tags:
            self.items[self.tags[key]] = item  # the last one wins, as in the store
            return True
        if item.kind == "param" and key in self.params:
            return bool(self.items[self.params[key]].entity.value == item.entity.value)
        if (
            len(self.items) >= MAX_ITEMS
            or (item.kind == "param" and len(self.params) >= MAX_PARAMS)
            or (item.kind == "tag" and len(self.tags) >= MAX_TAGS)
        ):
            return False
        if item.kind != "metric":
            (self.params if item.kind == "param" else self.tags)[key] = len(self.items)
        self.items.append(item)
        return True


def _from_batch(body: Body, seq: int) -> list[Item]:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.protos.service_pb2 import LogBatch

    message = parsed(body, LogBatch())
    return [
        *(Item("param", Param.from_proto(param), seq) for param in message.params),
        *(Item("metric", Metric.from_proto(metric), seq) for metric in message.metrics),
        *(Item("tag", RunTag.from_proto(tag), seq) for tag in message.tags),
    ]


def _from_metric(body: Body, seq: int) -> list[Item]:
    from mlflow.entities import Metric
    from mlflow.protos.service_pb2 import LogMetric

    message = parsed(body, LogMetric())
    metric = Metric(
        message.key,
        message.value,
        message.timestamp,
        message.step,
        message.model_id or None,
        message.dataset_name or None,
        message.dataset_digest or None,
        message.run_id or None,
    )
    return [Item("metric", metric, seq)]


def _from_param(body: Body, seq: int) -> list[Item]:
    from mlflow.entities import Param

    return [Item("param", Param(body["key"], body.get("value", "")), seq)]


def _from_tag(body: Body, seq: int) -> list[Item]:
    from mlflow.entities import RunTag

    return [Item("tag", RunTag(body["key"], body.get("value", "")), seq)]


COLLECTED: dict[str, Callable[[Body, int], list[Item]]] = {
    "runs/log-batch": _from_batch,
    "runs/log-metric": _from_metric,
    "runs/log-parameter": _from_param,
    "runs/set-tag": _from_tag,
}


def parsed(body: Body, message: Any) -> Any:
    from mlflow.utils.proto_json_utils import parse_dict

    parse_dict(body, message)
    return message


def parts(items: list[Item]) -> list[list[Item]]:
    """By kind first, since one bad parameter says nothing about metrics; then in halves."""
    kinds = [[item for item in items if item.kind == kind] for kind in ("param", "metric", "tag")]
    kinds = [part for part in kinds if part]
    if len(kinds) > 1:
        return kinds
    middle = len(items) // 2
    return [items[:middle], items[middle:]]
