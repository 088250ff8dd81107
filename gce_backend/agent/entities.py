"""Runs, metric histories and logged models as the relay knows them; pure, no I/O."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

# A client that lost an answer sends its batch again; so many points back are compared.
_REPEAT_WINDOW = 1000


class MetricHistory:
    """All points of one metric of one run: 24 bytes a point, however long the training."""

    def __init__(self) -> None:
        self._values = array("d")
        self._timestamps = array("q")
        self._steps = array("q")
        self._latest = 0  # index of the point with the highest (step, time, value)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float, timestamp: int, step: int, *, may_repeat: bool = False) -> None:
        """Add a point unless it is there: the store has each (step, time, value) once.

        ``may_repeat``: look at the whole history, not just at its end (``log_model`` sends the
        run's metrics again, whatever their age, to tie them to the model).
        """
        oldest = 0 if may_repeat else max(0, len(self) - _REPEAT_WINDOW)
        for index in range(len(self) - 1, oldest - 1, -1):
            if self._timestamps[index] < timestamp and not may_repeat:
                break
            if (self._timestamps[index], self._steps[index]) == (timestamp, step) and _same(
                self._values[index], value
            ):
                return
        array("q", (timestamp, step))  # OverflowError before any of the three has grown
        self._values.append(value)
        self._timestamps.append(timestamp)
        self._steps.append(step)
        if self._rank(len(self) - 1) > self._rank(self._latest):
            self._latest = len(self) - 1

    def step(self, index: int) -> int:
        return self._steps[index]

    def point(self, index: int) -> tuple[int, float]:
        """Time and value."""
        return self._timestamps[index], self._values[index]

    def points(self, key: str) -> Iterator[Json]:
        for value, timestamp, step in zip(self._values, self._timestamps, self._steps, strict=True):
            yield {"key": key, "value": to_json(value), "timestamp": timestamp, "step": step}

    def latest(self, key: str) -> Json:
        """The point with the highest (step, time, value), which is what the store shows."""
        return {
            "key": key,
            "value": to_json(self._values[self._latest]),
            "timestamp": self._timestamps[self._latest],
            "step": self._steps[self._latest],
        }

    def _rank(self, index: int) -> tuple[int, int, float]:
        value = self._values[index]
        # The store keeps a NaN as 0 with a flag (mlflow/store/tracking/sqlalchemy_store.py).
        return self._steps[index], self._timestamps[index], 0.0 if math.isnan(value) else value


@dataclass
class Run:
    """One run: the main one, or a child that the trainer created."""

    info: Json
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, MetricHistory] = field(default_factory=dict)
    datasets: list[Json] = field(default_factory=list)
    model_inputs: list[Json] = field(default_factory=list)
    model_outputs: list[Json] = field(default_factory=list)

    @classmethod
    def from_json(cls, raw: Json) -> Run:
        """From what REST ``runs/get`` gives under "run"; int64 may come as strings."""
        data, inputs = raw.get("data") or {}, raw.get("inputs") or {}
        run = cls(
            info=dict(raw["info"]),
            params={item["key"]: item.get("value", "") for item in data.get("params") or ()},
            tags={item["key"]: item.get("value", "") for item in data.get("tags") or ()},
            datasets=list(inputs.get("dataset_inputs") or ()),
            model_inputs=list(inputs.get("model_inputs") or ()),
            model_outputs=list((raw.get("outputs") or {}).get("model_outputs") or ()),
        )
        for point in data.get("metrics") or ():
            run.add_metric(point)
        return run

    @property
    def run_id(self) -> str:
        return str(self.info["run_id"])

    def add_metric(self, point: Json) -> None:
        history = self.metrics.setdefault(point["key"], MetricHistory())
        history.add(
            to_float(point.get("value", 0.0)),
            int(point.get("timestamp", 0)),
            int(point.get("step", 0)),
            may_repeat=bool(point.get("model_id")),
        )

    def set_tag(self, key: str, value: str) -> None:
        self.tags[key] = value
        if key == "mlflow.runName":
            self.info["run_name"] = value

    def add_datasets(self, datasets: list[Json]) -> None:
        for dataset in datasets:
            identity = _dataset_identity(dataset)
            if all(_dataset_identity(known) != identity for known in self.datasets):
                self.datasets.append(dataset)

    def to_json(self) -> Json:
        latest = [history.latest(key) for key, history in self.metrics.items()]
        return {
            "info": self.info,
            "data": {
                "metrics": latest,
                "params": pairs(self.params),
                "tags": pairs(self.tags),
            },
            "inputs": {"dataset_inputs": self.datasets, "model_inputs": self.model_inputs},
            "outputs": {"model_outputs": self.model_outputs},
        }


@dataclass
class Model:
    """A logged model; ``info`` has the fields of MLflow's LoggedModelInfo, tags apart."""

    info: Json
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Json] = field(default_factory=list)

    def add_metric(self, point: Json) -> None:
        if point not in self.metrics:
            self.metrics.append(point)

    def to_json(self) -> Json:
        return {
            "info": {**self.info, "tags": pairs(self.tags)},
            "data": {"params": pairs(self.params), "metrics": self.metrics},
        }


def pairs(items: dict[str, str]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in items.items()]


def to_float(value: Any) -> float:
    """A metric's value; protobuf's JSON has NaN and the infinities as strings."""
    return float(value)


def to_json(value: float) -> float | str:
    """The other way round: bare NaN is not JSON."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def _dataset_identity(item: Json) -> tuple[Any, Any]:
    dataset = item.get("dataset") or {}
    return dataset.get("name"), dataset.get("digest")
