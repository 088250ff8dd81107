"""Metrics, parameters and tags of a journal as MLflow's own entities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from gce_backend.agent.records import Item

Body: TypeAlias = dict[str, Any]


def _item(kind: str, entity: Any, seq: int) -> Item:
    return Item(kind, entity.key, entity.value, entity, seq)


def _from_batch(body: Body, seq: int) -> list[Item]:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.protos.service_pb2 import LogBatch

    message = parsed(body, LogBatch())
    return [
        *(_item("params", Param.from_proto(param), seq) for param in message.params),
        *(_item("metrics", Metric.from_proto(metric), seq) for metric in message.metrics),
        *(_item("tags", RunTag.from_proto(tag), seq) for tag in message.tags),
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
    return [_item("metrics", metric, seq)]


def _from_param(body: Body, seq: int) -> list[Item]:
    from mlflow.entities import Param

    return [_item("params", Param(body["key"], body.get("value", "")), seq)]


def _from_tag(body: Body, seq: int) -> list[Item]:
    from mlflow.entities import RunTag

    return [_item("tags", RunTag(body["key"], body.get("value", "")), seq)]


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
