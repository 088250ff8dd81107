"""Answers that are lists: filter, order, pages; and the ``fields`` of any answer."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import invalid_field
from .filters import compile_filter
from .names import url

Resource = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """How a list is ordered, within its scope; ``key`` tells any two resources apart."""

    key: Callable[[Resource], str]
    descending: bool = False

    def reaches(self, key: str, other: str) -> bool:
        """Whether ``key`` comes before ``other``, or is the same."""
        return key >= other if self.descending else key <= other


BY_NAME = Order(lambda resource: str(resource.get("name")))
_YOUNGEST_FIRST = Order(
    lambda resource: f"{resource.get('creationTimestamp')} {resource.get('name')}", True
)


def page(
    kind: str,
    path: str,
    resources: Iterable[Resource],
    query: Mapping[str, str],
    order: Order = BY_NAME,
) -> Resource:
    """One page of a plain list; ``kind`` without ``compute#``, ``path`` from ``projects/`` on."""
    chosen, token = select({"": resources}, query, order)
    items = [resource for _, resource in chosen]
    return {
        "kind": f"compute#{kind}",
        "id": path,
        "selfLink": url(path),
        **({"items": items} if items else {}),
        **({"nextPageToken": token} if token else {}),
    }


def aggregated(
    kind: str,
    path: str,
    collection: str,
    by_scope: Mapping[str, list[Resource]],
    query: Mapping[str, str],
    order: Order = BY_NAME,
) -> Resource:
    """An aggregated list: every scope is there, an empty one with a warning, as the API does."""
    chosen, token = select(by_scope, query, order)
    items: dict[str, Resource] = {
        scope: {
            "warning": {
                "code": "NO_RESULTS_ON_PAGE",
                "message": f"There are no results for scope '{scope}' on this page.",
                "data": [{"key": "scope", "value": scope}],
            }
        }
        for scope in by_scope
    }
    for scope, resource in chosen:
        items[scope].pop("warning", None)
        items[scope].setdefault(collection, []).append(resource)
    return {
        "kind": f"compute#{kind}",
        "id": path,
        "selfLink": url(path),
        "items": items,
        **({"nextPageToken": token} if token else {}),
    }


def select(
    by_scope: Mapping[str, Iterable[Resource]], query: Mapping[str, str], order: Order = BY_NAME
) -> tuple[list[tuple[str, Resource]], str | None]:
    """The page asked for, as (scope, resource), and the token of the next one.

    A token names the last resource it has seen, so a page skips nothing and repeats nothing when
    resources come and go between pages, that one included.
    """
    matches = compile_filter(query.get("filter", ""))
    if query.get("orderBy") == "creationTimestamp desc" and order is BY_NAME:
        order = _YOUNGEST_FIRST
    last = _decoded(query.get("pageToken", ""))
    limit = _limit(query.get("maxResults", "500"))
    after = [
        (scope, resource)
        for scope in sorted(by_scope)
        for resource in sorted(by_scope[scope], key=order.key, reverse=order.descending)
        if matches(resource) and not _seen(scope, order.key(resource), last, order)
    ]
    if len(after) <= limit:
        return after, None
    scope, resource = after[limit - 1]
    text = json.dumps([scope, order.key(resource)])
    return after[:limit], base64.urlsafe_b64encode(text.encode()).decode()


def _seen(scope: str, key: str, last: tuple[str, str] | None, order: Order) -> bool:
    if last is None:
        return False
    return scope < last[0] or (scope == last[0] and order.reaches(key, last[1]))


def _limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > 500:
        raise invalid_field("maxResults", text, "Must be between 0 and 500.")
    return int(text) or 500


def _decoded(token: str) -> tuple[str, str] | None:
    """(scope, key) of the last resource of the page before."""
    if not token:
        return None
    try:
        scope, key = json.loads(base64.urlsafe_b64decode(token))
    except (TypeError, ValueError) as error:  # of base64 and of JSON, too
        raise invalid_field("pageToken", token, "Invalid page token.") from error
    return str(scope), str(key)


def selection(fields: str) -> Callable[[Any], Any]:
    """What ``fields`` (``items(id,name),nextPageToken``, ``a/b``, ``*``) keeps of an answer.

    Raises:
        ApiError: 400, it cannot be read.
    """
    try:
        tree, rest = _field_tree(fields)
        if rest:
            raise ValueError(rest)
    except (RecursionError, ValueError) as error:
        raise invalid_field("fields", fields, "Invalid field selection.") from error
    return lambda answer: _kept(answer, tree)


def _field_tree(text: str) -> tuple[dict[str, Any], str]:
    """``(name -> tree, unread rest)``; an empty tree keeps everything below."""
    tree: dict[str, Any] = {}
    while text and text[0] != ")":
        name, inner, text = _field(text)
        tree[name] = inner
        text = text.removeprefix(",")
    return tree, text


def _field(text: str) -> tuple[str, dict[str, Any], str]:
    """The first of a list of fields, such as ``a/*/b(c,d)``: name, what is below, unread rest."""
    end = next((at for at, char in enumerate(text) if char in ",/()"), len(text))
    name, text = text[:end].strip(), text[end:]
    if not name:
        raise ValueError(text)
    inner: dict[str, Any] = {}
    if text.startswith("("):
        inner, text = _field_tree(text[1:])
        if not text.startswith(")"):
            raise ValueError(text)
        text = text[1:]
    elif text.startswith("/"):
        below, tree, text = _field(text[1:])
        inner = {below: tree}
    return name, inner, text


def _kept(node: Any, tree: dict[str, Any]) -> Any:
    if not tree:
        return node
    if isinstance(node, list):
        return [_kept(item, tree) for item in node]
    if not isinstance(node, dict):
        return node
    if "*" in tree:
        return {name: _kept(value, tree["*"]) for name, value in node.items()}
    return {name: _kept(value, tree[name]) for name, value in node.items() if name in tree}
