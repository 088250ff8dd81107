"""Metrics, parameters and tags as entries of a ``log-batch`` request, however they were logged.

The relay writes them to the journal as MLflow's protocol has them, and who applies a journal looks
again: an entry that is none costs itself, not what it came with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .entities import Json, to_float, to_json

_TEXTS_OF_A_METRIC = ("model_id", "dataset_name", "dataset_digest", "run_id")
_KINDS = ("params", "metrics", "tags")

#: What an entry that is none raises.
UNFIT = (LookupError, TypeError, ValueError, AttributeError, OverflowError)


def normal(kind: str, entry: Json) -> Json:
    """The entry with its values as MLflow's protocol has them. Raises one of UNFIT."""
    if kind != "metrics":
        return {**entry, "value": text(entry)}
    for field in _TEXTS_OF_A_METRIC:
        if not isinstance(entry.get(field) or "", str):
            raise TypeError(f"its {field} is {entry[field]!r}, which is no string")
    return {
        **entry,
        "value": to_json(to_float(entry["value"])),
        "timestamp": int(entry.get("timestamp", 0)),
        "step": int(entry.get("step", 0)),
    }


def text(entry: Json) -> str:
    """A parameter's or tag's value; null and none at all are the empty one. Raises TypeError."""
    value = entry.get("value")
    if not isinstance(value, str | None):
        raise TypeError(f"its value is {value!r}, which is no string")
    return value or ""


def _of_batch(body: Json) -> list[tuple[str, Any]]:
    return [(kind, entry) for kind in _KINDS for entry in body.get(kind) or ()]


def _of_metric(body: Json) -> list[tuple[str, Any]]:
    fields = ("key", "value", "timestamp", "step", *_TEXTS_OF_A_METRIC)
    return [("metrics", {field: body[field] for field in fields if field in body})]


def _of_pair(kind: str) -> Callable[[Json], list[tuple[str, Any]]]:
    return lambda body: [(kind, {"key": body["key"], "value": body.get("value", "")})]


#: By path: a body's entries with their kinds, of those writes whose order among them is free.
ENTRIES: dict[str, Callable[[Json], list[tuple[str, Any]]]] = {
    "runs/log-batch": _of_batch,
    "runs/log-metric": _of_metric,
    "runs/log-parameter": _of_pair("params"),
    "runs/set-tag": _of_pair("tags"),
}
