"""What the tracking store would refuse, refused here with its words (MLflow 3.17).

Not every rule of the store: those that training code runs into. What passes here and is refused
later is set aside by whoever applies the journal; it never blocks what follows.
"""

from __future__ import annotations

import math
import re
import shlex
from typing import Any

from .entities import Json
from .entries import UNFIT, normal, text
from .errors import invalid

# Limits and the shape of names: mlflow/utils/validation.py.
MAX_KEY = 250
MAX_PARAM_VALUE = 6000
MAX_TAG_VALUE = 8000
MAX_EXPERIMENT_TAG_VALUE = 20000
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_TAGS_PER_BATCH = 100
MAX_ENTITIES_PER_BATCH = 1000
_INT64 = 2**63
_NAME = re.compile(r"^[/\w.\- :]*$")


def check_batch_limits(metrics: list[Json], params: list[Json], tags: list[Json]) -> None:
    limits = (
        ("metrics", len(metrics), MAX_METRICS_PER_BATCH),
        ("params", len(params), MAX_PARAMS_PER_BATCH),
        ("tags", len(tags), MAX_TAGS_PER_BATCH),
        (
            "metrics, params, and tags",
            len(metrics) + len(params) + len(tags),
            MAX_ENTITIES_PER_BATCH,
        ),
    )
    for what, count, limit in limits:
        if count > limit:
            raise invalid(
                f"A batch logging request can contain at most {limit} {what}. "
                f"Got {count} {what}. Please split up {what} across multiple requests and "
                "try again."
            )


def check_metric(point: Json) -> Json:
    """The point as MLflow's protocol has it. Raises RelayError, as all of these."""
    _check_name(point.get("key"), "metric")
    try:
        fit = normal("metrics", point)
    except UNFIT as error:
        raise invalid(
            f"Got invalid value {point.get('value')} for metric '{point.get('key')}' "
            f"(timestamp={point.get('timestamp')}). Please specify value as a valid double (64-bit "
            f"floating point): {error}"
        ) from error
    timestamp, step = fit["timestamp"], fit["step"]
    if not (0 <= timestamp < _INT64 and -_INT64 <= step < _INT64):
        raise invalid(
            f"Got timestamp={timestamp}, step={step} for metric '{point['key']}'. A timestamp is a "
            "nonnegative 64-bit integer, in milliseconds; a step is a 64-bit integer"
        )
    return fit


def check_param(param: Json) -> Json:
    """The parameter with its value as the store keeps it: the first so many characters
    (MLFLOW_TRUNCATE_LONG_VALUES is true unless the store's owner says otherwise)."""
    _check_name(param.get("key"), "param")
    return {**param, "value": _text(param)[:MAX_PARAM_VALUE]}


def check_tag(tag: Json) -> Json:
    """The tag with its value as the store keeps it, as ``check_param``."""
    _check_name(tag.get("key"), "tag")
    return {**tag, "value": _text(tag)[:MAX_TAG_VALUE]}


def check_experiment_tag(tag: Json) -> None:
    check_tag(tag)
    _check_length("Tag value", _text(tag), MAX_EXPERIMENT_TAG_VALUE)


def check_texts(body: Json) -> None:
    """That the parameters and tags which a run or a model is made with, or given, are texts."""
    for item in (*(body.get("params") or ()), *(body.get("tags") or ())):
        _text(item)


def same_param(stored: str, new: str) -> bool:
    """Whether ``new`` says what ``stored`` says.

    MLflow's client stores command line parameters as strings, shell-quoted; the trainer then
    logs what it parsed: ``1e-3`` comes back as ``0.001``, ``'a b'`` as ``a b``.
    """
    if stored == new:
        return True
    try:
        left, right = float(stored), float(new)
        return left == right or (math.isnan(left) and math.isnan(right))
    except ValueError:
        pass
    try:
        return shlex.split(stored) == [new] or shlex.split(new) == [stored]
    except ValueError:
        return False


def changed_param(key: str, stored: str, new: str, run_id: str) -> str:
    return (
        f"Changing param values is not allowed. Param with key='{key}' was already logged with "
        f"value='{stored}' for run ID='{run_id}'. Attempted logging new value '{new}'."
    )


def _text(item: Json) -> str:
    try:
        return text(item)
    except TypeError as error:
        raise invalid(
            f"Invalid value for parameter 'value' of '{item.get('key')}' supplied: {error}."
        ) from error


def _check_name(name: Any, what: str) -> None:
    if not isinstance(name, str) or not name:
        raise invalid(f"Missing value for required parameter 'key': a {what} needs a name.")
    if not _NAME.match(name):
        raise invalid(
            f"Invalid {what} name: '{name}'. Names may only contain alphanumerics, underscores "
            "(_), dashes (-), periods (.), spaces ( ), colon(:) and slashes (/)."
        )
    if name.startswith(("/", "../")) or "/../" in name or name in (".", ".."):
        raise invalid(
            f"Invalid {what} name: '{name}'. Names may be treated as files in certain cases."
        )
    _check_length(f"{what.capitalize()} name", name, MAX_KEY)


def _check_length(what: str, value: Any, limit: int) -> None:
    if len(str(value)) > limit:
        raise invalid(
            f"'{what}' exceeds the maximum length of {limit} characters: {len(str(value))}"
        )
