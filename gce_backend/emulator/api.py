"""From an HTTP request to a method of the API and back, without any HTTP server.

Every method of Compute Engine v1 is known by its path; one that has no function here is answered
501 with its name, never with a made-up success.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from . import catalog, strikes
from .calls import Call
from .cloud import PROJECT_NUMBER, Cloud
from .discovery import document
from .errors import ApiError, ReplyLost, invalid, invalid_field, not_emulated, not_found, unexpected
from .life import Life
from .lists import selection
from .methods import METHODS
from .methods.arguments import Arguments
from .names import last
from .operations import ACCOUNT
from .tokens import Token, check_scope

ROOT = "/compute/v1/"


@dataclass(frozen=True)
class Request:
    """``path``: as sent, still percent-encoded; ``caller``: the instance it came from, if any."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    caller: Life | None = None


@dataclass(frozen=True)
class Reply:
    status: int
    body: dict[str, Any] | None


@dataclass
class _Node:
    """Of the tree of path segments; a ``{name}`` segment is the ``variable``."""

    literal: dict[str, _Node] = field(default_factory=dict)
    variable: _Node | None = None
    methods: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # verb -> id, names


class Router:
    """Finds the method of a path among all that the discovery document has."""

    def __init__(self) -> None:
        self._root = _Node()
        for identifier, verb, path in document()["methods"]:
            node = self._root
            names = []
            for segment in path.split("/"):
                if segment.startswith("{"):
                    names.append(segment[1:-1])
                    node.variable = node.variable or _Node()
                    node = node.variable
                else:
                    node = node.literal.setdefault(segment, _Node())
            node.methods[verb] = (identifier, names)

    def find(self, verb: str, path: str) -> tuple[str, dict[str, str]] | None:
        """``(id, path parameters)``; None: no such path, or not with this verb."""
        found = self._find(self._root, verb, [unquote(part) for part in path.split("/")], [])
        if found is None:
            return None
        (identifier, names), values = found
        return identifier, dict(zip(names, values, strict=True))

    def _find(
        self, node: _Node, verb: str, parts: list[str], values: list[str]
    ) -> tuple[tuple[str, list[str]], list[str]] | None:
        if not parts:
            return (node.methods[verb], values) if verb in node.methods else None
        head, rest = parts[0], parts[1:]
        if head in node.literal and (found := self._find(node.literal[head], verb, rest, values)):
            return found
        if node.variable is not None and head:
            return self._find(node.variable, verb, rest, [*values, head])
        return None


class Api:
    """Compute Engine v1 over one :class:`.cloud.Cloud`."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._router = Router()

    async def dispatch(self, request: Request) -> Reply:
        """Serve a request and record it.

        Raises:
            ReplyLost: a fault wants the connection to break.
        """
        body = _json(request.body)
        place = self._cloud.begin(
            Call(
                at=self._cloud.clock.now(),
                service="compute",
                method=request.method,
                path=unquote(request.path),
                query=dict(request.query),
                body=body,
                status=None,
                caller=request.caller.instance.name if request.caller else "",
            )
        )
        status = 0
        try:
            answer = await self._serve(request, body, place)
            self._cloud.end(place, answer=answer)
            status = 200
            return Reply(status, answer)
        except ReplyLost:
            raise
        except Exception as error:
            failure = error if isinstance(error, ApiError) else unexpected(error)
            status = failure.code
            return Reply(status, failure.body())
        finally:
            self._cloud.end(place, status=status)

    async def _serve(
        self, request: Request, body: dict[str, Any] | None, place: int
    ) -> dict[str, Any]:
        found = self._router.find(request.method, request.path.removeprefix(ROOT))
        if found is None or not request.path.startswith(ROOT):
            raise ApiError(404, "notFound", f"{request.method} {request.path}: no such method")
        identifier, params = found
        self._cloud.end(place, name=identifier)
        token = self._cloud.tokens.authenticate(
            request.headers.get("Authorization"), by_instance=request.caller is not None
        )
        if token is not None:
            self._cloud.end(place, caller=token.instance)
        check_scope(token, "compute", writes=request.method != "GET")
        if request.body and body is None:
            raise invalid("Parse Error: the body is no JSON object.")
        method = METHODS.get(identifier)
        if method is None:
            raise not_emulated(f"compute.{identifier}")
        fields = request.query.get("fields")
        kept = selection(fields) if fields else None
        arguments = Arguments(params, request.query, body, self._user(token))
        fault = self._cloud.faults.take_answer(identifier, *_names(arguments))
        await strikes.before(fault, self._cloud.clock)
        self._check_project(arguments, identifier)
        _check_place(arguments, identifier)
        answer = await method(self._cloud, arguments)
        strikes.after(fault)
        return kept(answer) if kept else answer

    def _user(self, token: Token | None) -> str:
        """E-mail of who calls: an instance's service account, by its token, or the user."""
        caller = token.instance if token is not None else ""
        for instance in (life.instance for life in self._cloud.lives.values()):
            if caller in (instance.id, instance.name) and instance.body["serviceAccounts"]:
                return str(instance.body["serviceAccounts"][0]["email"])
        return ACCOUNT

    def _check_project(self, arguments: Arguments, identifier: str) -> None:
        project = arguments.params.get("project")
        known = (self._cloud.settings.project, PROJECT_NUMBER)
        if project in known or identifier.startswith("images."):
            return
        raise not_found(f"projects/{project}")


def _check_place(arguments: Arguments, identifier: str) -> None:
    """An unknown zone or region is a 404 only where it is itself what is asked for."""
    for kind, known in (("zone", catalog.zones()), ("region", catalog.table()["regions"])):
        place = arguments.params.get(kind)
        if place is not None and place not in known and identifier != f"{kind}s.get":
            raise invalid_field(kind, place, f"Unknown {kind}.")


def _names(arguments: Arguments) -> tuple[str, ...]:
    """How a fault may call what a request is about."""
    name = next(
        (
            arguments.params[key]
            for key in ("instance", "operation", "disk", "resource", "family", "image")
            if key in arguments.params
        ),
        (arguments.body or {}).get("name", ""),
    )
    place = arguments.params.get("zone") or arguments.params.get("region") or "global"
    return (str(name), f"{place}/{last(str(name))}")


def _json(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body) if body else None
    except (RecursionError, ValueError):
        return None
    return parsed if isinstance(parsed, dict) else None
