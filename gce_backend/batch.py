"""Metrics, parameters and tags of a journal as MLflow's own entities."""

from __future__ import annotations

from typing import Any, TypeAlias

Body: TypeAlias = dict[str, Any]


def entity(kind: str, entry: Body) -> Any:
    """An entry of a log-batch, of kind "metrics", "params" or "tags".

    Raises:
        google.protobuf.json_format.ParseError: MLflow's protocol has no such entry.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.protos import service_pb2

    if kind == "metrics":
        return Metric.from_proto(parsed(entry, service_pb2.Metric()))
    if kind == "params":
        return Param.from_proto(parsed(entry, service_pb2.Param()))
    return RunTag.from_proto(parsed(entry, service_pb2.RunTag()))


def parsed(body: Body, message: Any) -> Any:
    from mlflow.utils.proto_json_utils import parse_dict

    parse_dict(body, message)
    return message
