"""MLflow's filter language over the few runs and models that the relay knows.

Terms joined by AND, as in ``mlflow/utils/search_utils.py`` (3.17): metrics and times are compared
as numbers, everything else as text. What is more than that gets an error that says so.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from .entities import Json
from .errors import RelayError

_KEY = r"""\s*(?:(?P<group>metrics?|tags?|params?|parameters?|attributes?|attr|run)\.)?
    (?:`(?P<quoted>[^`]+)`|"(?P<double>[^"]+)"|(?P<plain>[\w.\-/]+))"""
_TERM = re.compile(
    _KEY
    + r"""\s*(?P<operator>!=|>=|<=|=|>|<|\b(?:NOT\s+)?IN\b|\bI?LIKE\b)\s*
        (?P<value>'[^']*'|"[^"]*"|\(\s*(?:'[^']*'|"[^"]*")(?:\s*,\s*(?:'[^']*'|"[^"]*"))*\s*\)
        |-?[\d.]+(?:e[+-]?\d+)?)\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_ORDER = re.compile(_KEY + r"\s*(?P<direction>ASC|DESC)?\s*$", re.VERBOSE | re.IGNORECASE)
_AND = re.compile(r"and\b", re.IGNORECASE)
_TEXT = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_TEXTS: dict[str, Callable[[str, list[str]], bool]] = {
    "=": lambda found, given: found == given[0],
    "!=": lambda found, given: found != given[0],
    "IN": lambda found, given: found in given,
    "NOT IN": lambda found, given: found not in given,
    "LIKE": lambda found, given: _like(found, given[0], re.DOTALL),
    "ILIKE": lambda found, given: _like(found, given[0], re.DOTALL | re.IGNORECASE),
}

Test = Callable[[Json], bool]


def matching(items: list[Json], text: str) -> list[Json]:
    """Items (runs or models, as JSON) for which all terms hold. RelayError for other filters."""
    tests = _parse(text)
    return [item for item in items if all(test(item) for test in tests)]


def ordered(items: list[Json], order_by: list[str]) -> list[Json]:
    """By the given keys, without any the newest first, as the store does."""
    items = sorted(items, key=lambda item: -int(item["info"].get("start_time") or 0))
    for clause in reversed(order_by):
        parsed = _ORDER.match(clause)
        if parsed is None:
            raise _unsupported(f"order_by {clause}")
        group, key = _group_and_key(parsed)
        backwards = (parsed["direction"] or "ASC").upper() == "DESC"
        has = [item for item in items if _value(item, group, key) is not None]
        lacks = [item for item in items if _value(item, group, key) is None]
        has.sort(key=lambda item: _sortable(_value(item, group, key)), reverse=backwards)
        items = has + lacks
    return items


def _parse(text: str) -> list[Test]:
    tests: list[Test] = []
    text = text.rstrip()
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None:
            raise _unsupported(text)
        tests.append(_test(term, text))
        position = term.end()
        if position < len(text):
            joint = _AND.match(text, position)
            if joint is None:
                raise _unsupported(text)
            position = joint.end()
    return tests


def _test(term: re.Match[str], text: str) -> Test:
    group, key = _group_and_key(term)
    sign = " ".join(term["operator"].upper().split())
    if term["value"][0] in "'\"(":
        given = [single or double for single, double in _TEXT.findall(term["value"])]
        if group.startswith("metric") or sign not in _TEXTS:
            raise _unsupported(text)
        holds = _TEXTS[sign]
        return lambda item: (
            (found := _value(item, group, key)) is not None and holds(str(found), given)
        )
    if sign not in _NUMBERS or not group.startswith(("metric", "attr", "run")):
        raise _unsupported(text)
    number, compares = float(term["value"]), _NUMBERS[sign]
    return lambda item: (
        (found := _value(item, group, key)) is not None and compares(float(found), number)
    )


def _group_and_key(match: re.Match[str]) -> tuple[str, str]:
    group = (match["group"] or "attribute").lower()
    return group, match["quoted"] or match["double"] or match["plain"]


def _value(item: Json, group: str, key: str) -> Any:
    """None where the item has nothing of that name."""
    info, data = item["info"], item.get("data") or {}
    if group.startswith("tag"):
        return {**_dict(info.get("tags")), **_dict(data.get("tags"))}.get(key)
    if group.startswith("param"):
        return _dict(data.get("params")).get(key)
    if group.startswith("metric"):
        return _dict(data.get("metrics")).get(key)
    return info.get(key)


def _dict(pairs: list[Json] | None) -> dict[str, Any]:
    return {pair["key"]: pair.get("value", "") for pair in pairs or ()}


def _sortable(value: Any) -> tuple[bool, float, str]:
    """Numbers by their value, before text."""
    try:
        return False, float(value), ""
    except (TypeError, ValueError):
        return True, 0.0, str(value)


def _like(found: str, pattern: str, flags: int) -> bool:
    parts = [{"%": ".*", "_": "."}.get(char, re.escape(char)) for char in pattern]
    return re.fullmatch("".join(parts), found, flags) is not None


def _unsupported(text: str) -> RelayError:
    return RelayError(
        "NOT_IMPLEMENTED",
        f'"{text}" is more than the relay on the instance can answer: it compares metrics with '
        "numbers, and tags, params and attributes with quoted text (=, !=, LIKE, ILIKE, IN), "
        "joined by AND. Search on the client.",
    )
