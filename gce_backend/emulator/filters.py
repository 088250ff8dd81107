"""The ``filter`` parameter of lists.

Two forms, as the API has them: comparisons (``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``:``)
combined with AND, OR, NOT, parentheses and mere adjacency (which is AND); and ``FIELD eq REGEXP``,
``FIELD ne REGEXP``, where the whole value must match. ``labels.owner:*`` asks whether it is there.
Of a list one item must match, as in ``tags.items=web`` and ``networkInterfaces.name=nic0``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from .errors import ApiError, invalid_field

Predicate = Callable[[dict[str, Any]], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
          |(?P<symbol><=|>=|!=|[()=<>:])
          |(?P<word>[^\s()=<>:!"']+))""",
    re.VERBOSE,
)
_DEEPEST = 50  # parentheses and NOTs inside each other; Python's stack is not endless
_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=", ":", "eq", "ne")


def compile_filter(text: str) -> Predicate:
    """A predicate on resources.

    Raises:
        ApiError: 400, it cannot be read.
    """
    if not text.strip():
        return lambda resource: True
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split(text)
        self._at = 0
        self._depth = 0

    def parse(self) -> Predicate:
        predicate = self._either()
        if self._at < len(self._tokens):
            raise self._unreadable()
        return predicate

    def _unreadable(self) -> ApiError:
        return invalid_field("filter", self._text, "Invalid list filter expression.")

    def _split(self, text: str) -> list[tuple[str, str]]:
        tokens, at = [], 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._unreadable()
            kind = match.lastgroup or ""
            value = match.group(kind)
            if kind == "quoted":
                value = re.sub(r"\\([\"'\\])", r"\1", value[1:-1])
            tokens.append((kind, value))
            at = match.end()
        return tokens

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def _either(self) -> Predicate:
        options = [self._all()]
        while self._peek() == ("word", "OR"):
            self._take()
            options.append(self._all())
        return lambda resource: any(option(resource) for option in options)

    def _all(self) -> Predicate:
        terms = [self._term()]
        while self._peek()[0] != "end" and self._peek() not in (("symbol", ")"), ("word", "OR")):
            if self._peek() == ("word", "AND"):
                self._take()
            terms.append(self._term())
        return lambda resource: all(term(resource) for term in terms)

    def _term(self) -> Predicate:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._unreadable()
        term = self._simple_term()
        self._depth -= 1
        return term

    def _simple_term(self) -> Predicate:
        kind, value = self._take()
        if (kind, value) == ("word", "NOT"):
            inner = self._term()
            return lambda resource: not inner(resource)
        if (kind, value) == ("symbol", "("):
            inner = self._either()
            if self._take() != ("symbol", ")"):
                raise self._unreadable()
            return inner
        if kind not in ("word", "quoted"):
            raise self._unreadable()
        if kind == "word" and value.startswith("-"):
            inner = self._comparison(value[1:])
            return lambda resource: not inner(resource)
        return self._comparison(value)

    def _comparison(self, field: str) -> Predicate:
        _, operator = self._take()
        kind, wanted = self._take()
        if operator not in _COMPARISONS or kind not in ("word", "quoted"):
            raise self._unreadable()
        if operator in ("eq", "ne"):
            return self._matching(field, operator, wanted)
        return _any(field, operator, lambda value: _compare(value, operator, wanted))

    def _matching(self, field: str, operator: str, wanted: str) -> Predicate:
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise self._unreadable() from error

        return _any(field, operator, lambda value: pattern.fullmatch(_text(value)) is not None)


def _any(field: str, operator: str, holds: Callable[[Any], bool]) -> Predicate:
    """Whether it holds for one of the field's values, or with ``!=`` and ``ne`` for none."""
    wanted = operator not in ("!=", "ne")
    parts = field.split(".")
    return lambda resource: any(map(holds, _values(resource, parts) or [None])) is wanted


def _values(node: Any, parts: list[str]) -> list[Any]:
    """What a field is, several where lists are on the way or at its end."""
    if isinstance(node, list):
        return [value for item in node for value in _values(item, parts)]
    if not parts:
        return [node]
    return _values(node[parts[0]], parts[1:]) if isinstance(node, dict) and parts[0] in node else []


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _compare(value: Any, operator: str, wanted: str) -> bool:
    if operator == ":":
        if wanted == "*" or value is None:
            return value is not None
        if isinstance(value, dict):
            return wanted in value
        return fnmatchcase(_text(value), wanted if "*" in wanted else f"*{wanted}*")
    if value is None:
        return False
    if operator in ("=", "!="):
        return _text(value) == wanted
    left: Any = _text(value)
    right: Any = wanted
    with contextlib.suppress(ValueError):
        left, right = float(left), float(right)
    return _ordered(operator, left, right)


def _ordered(operator: str, left: Any, right: Any) -> bool:
    return bool(
        {
            "<": left < right,
            "<=": left <= right,
            ">": left > right,
            ">=": left >= right,
        }[operator]
    )
