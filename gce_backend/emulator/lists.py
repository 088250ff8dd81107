"""Answers that are lists: filter, order, pages; and the ``fields`` of any answer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import invalid_field
from .filters import compile_filter
from .names import url

Resource = dict[str, Any]


def page(kind: str, path: str, resources: Iterable[Resource], query: Mapping[str, str]) -> Resource:
    """One page of a plain list; ``kind`` without ``compute#``, ``path`` from ``projects/`` on."""
    chosen, token = select(resources, query)
    return {
        "kind": f"compute#{kind}",
        "id": path,
        "selfLink": url(path),
        **({"items": chosen} if chosen else {}),
        **({"nextPageToken": token} if token else {}),
    }


def aggregated(
    kind: str,
    path: str,
    collection: str,
    by_scope: Mapping[str, list[Resource]],
    query: Mapping[str, str],
) -> Resource:
    """An aggregated list: every scope is there, an empty one with a warning, as the API does."""
    flat = [(scope, resource) for scope in by_scope for resource in by_scope[scope]]
    scope_of = {id(resource): scope for scope, resource in flat}
    chosen, token = select([resource for _, resource in flat], query)
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
    for resource in chosen:
        scoped = items[scope_of[id(resource)]]
        scoped.pop("warning", None)
        scoped.setdefault(collection, []).append(resource)
    return {
        "kind": f"compute#{kind}",
        "id": path,
        "selfLink": url(path),
        "items": items,
        **({"nextPageToken": token} if token else {}),
    }


def select(
    resources: Iterable[Resource], query: Mapping[str, str]
) -> tuple[list[Resource], str | None]:
    """The resources of the page asked for, and the token of the next one."""
    matches = compile_filter(query.get("filter", ""))
    chosen = [resource for resource in resources if matches(resource)]
    if query.get("orderBy") == "creationTimestamp desc":
        chosen.sort(key=lambda resource: str(resource.get("creationTimestamp")), reverse=True)
    start = _decoded(query.get("pageToken", ""))
    limit = _limit(query.get("maxResults", "500"))
    after = chosen[start:]
    if len(after) <= limit:
        return after, None
    return after[:limit], base64.urlsafe_b64encode(f"offset={start + limit}".encode()).decode()


def _limit(text: str) -> int:
    if not text.isdigit() or int(text) > 500:
        raise invalid_field("maxResults", text, "Must be between 0 and 500.")
    return int(text) or 500


def _decoded(token: str) -> int:
    if not token:
        return 0
    try:
        name, _, number = base64.urlsafe_b64decode(token).decode().partition("=")
        if name == "offset":
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise invalid_field("pageToken", token, "Invalid page token.")


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
