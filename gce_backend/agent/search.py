"""The simple end of MLflow's filter language: ``a = 'x' AND tags.b = 'y'``."""

from __future__ import annotations

import re

from .entities import Json
from .errors import RelayError

_TERM = re.compile(
    r"""\s*(?:(?P<group>tags?|params?|parameters?|attributes?|attr|run)\.)?
        (?:`(?P<quoted>[^`]+)`|"(?P<double>[^"]+)"|(?P<plain>[\w.\-/]+))
        \s*(?P<operator>!=|=)\s*
        (?:'(?P<single>[^']*)'|"(?P<value>[^"]*)")\s*""",
    re.VERBOSE,
)
_AND = re.compile(r"and\b", re.IGNORECASE)


def matching(items: list[Json], text: str) -> list[Json]:
    """Items (runs or models, as JSON) for which all terms hold. RelayError for other filters."""
    terms = _parse(text)
    return [item for item in items if all(_holds(item, *term) for term in terms)]


def _parse(text: str) -> list[tuple[str, str, bool, str]]:
    terms = []
    position = 0
    while position < len(text.rstrip()):
        term = _TERM.match(text, position)
        if term is None:
            raise _unsupported(text)
        key = term["quoted"] or term["double"] or term["plain"]
        value = term["single"] if term["single"] is not None else term["value"]
        terms.append((term["group"] or "attribute", key, term["operator"] == "=", value))
        position = term.end()
        if position < len(text.rstrip()):
            joint = _AND.match(text, position)
            if joint is None:
                raise _unsupported(text)
            position = joint.end()
    return terms


def _holds(item: Json, group: str, key: str, equal: bool, value: str) -> bool:
    info, data = item["info"], item.get("data") or {}
    if group.startswith("tag"):
        source = {**_dict(info.get("tags")), **_dict(data.get("tags"))}
    elif group.startswith("param"):
        source = _dict(data.get("params"))
    else:
        source = info
    return key in source and (str(source[key]) == value) is equal


def _dict(pairs: list[Json] | None) -> dict[str, str]:
    return {pair["key"]: pair.get("value", "") for pair in pairs or ()}


def _unsupported(text: str) -> RelayError:
    return RelayError(
        "NOT_IMPLEMENTED",
        f'the filter "{text}" is more than the relay on the instance can answer: it knows '
        "\"key = 'value'\" on tags, params and attributes, joined by AND. Search on the client.",
    )
