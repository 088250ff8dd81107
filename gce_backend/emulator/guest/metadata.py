"""The metadata server of an instance, as ``metadata.google.internal`` answers it.

Knows ``recursive``, ``alt``, ``wait_for_change`` with ``last_etag`` and ``timeout_sec``, and PUT
and DELETE of guest attributes. Every request needs the header ``Metadata-Flavor: Google``, every
answer has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from aiohttp import web

ROOT = "/computeMetadata/v1/"
# Below these the names are the users' own, and stay as they are.
_USERS_NAMES = frozenset({"attributes", "guest-attributes"})
_VALUE_BYTES = 256 * 1024  # of a guest attribute
_FLAVOR = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}

Tree = dict[str, Any]


class Metadata:
    """Serves one instance's metadata.

    Args:
        tree: gives the whole metadata at this moment; a leaf is a string, a list of strings that
            are shown one a line, or a tuple of such as are shown as JSON; a callable leaf is asked
            only when it is read (a token).
        put_guest_attribute: takes ``(namespace, key, value)``; None instead of a value removes it.
            Raises PermissionError, or KeyError for one that is not there.
    """

    def __init__(
        self,
        tree: Callable[[], Tree],
        put_guest_attribute: Callable[[str, str, str | None], None],
    ) -> None:
        self._tree = tree
        self._put_guest_attribute = put_guest_attribute
        self._changed = asyncio.Condition()
        self._closed = False

    async def changed(self) -> None:
        """Wake those who wait for a change."""
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        self._closed = True
        await self.changed()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.path.startswith("/computeMetadata/"):
            listing = "computeMetadata/\n" if request.path == "/" else ""
            return web.Response(text=listing, status=200 if listing else 404, headers=_FLAVOR)
        if request.headers.get("Metadata-Flavor") != "Google" or (
            "X-Forwarded-For" in request.headers
        ):
            return web.Response(
                status=403, text="Missing Metadata-Flavor:Google header.\n", headers=_FLAVOR
            )
        path = request.path.removeprefix(ROOT)
        if request.method in ("PUT", "DELETE"):
            return await self._change(request, path)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers=_FLAVOR)
        if request.query.get("wait_for_change", "").lower() == "true":
            timeout = request.query.get("timeout_sec", "0")
            if not re.fullmatch("[0-9]{1,9}", timeout):
                return _bad_request(f"timeout_sec is no number of seconds: {timeout}")
            await self._wait(path, request, int(timeout))
        return self._answer(path, request)

    async def _change(self, request: web.BaseRequest, path: str) -> web.Response:
        parts = path.split("/")
        if parts[:2] != ["instance", "guest-attributes"] or len(parts) != 4:
            return web.Response(status=405, headers=_FLAVOR)
        content = await request.content.read()
        if len(content) > _VALUE_BYTES:
            return web.Response(status=413, text="Value is too large.\n", headers=_FLAVOR)
        try:
            value = content.decode() if request.method == "PUT" else None
            self._put_guest_attribute(parts[2], parts[3], value)
        except UnicodeDecodeError:
            return _bad_request("a guest attribute is UTF-8")
        except PermissionError as error:
            return web.Response(status=403, text=f"{error}\n", headers=_FLAVOR)
        except KeyError:
            return web.Response(status=404, text="Not found\n", headers=_FLAVOR)
        await self.changed()
        return web.Response(headers=_FLAVOR)

    async def _wait(self, path: str, request: web.BaseRequest, seconds: int) -> None:
        """Until the value differs from ``last_etag`` (without one: from now), or ``seconds``.

        0 seconds are as long as it takes. A path where there is nothing is answered at once: only
        what exists can be waited for.
        """
        if self._render(path, request) is None:
            return
        before = request.query.get("last_etag") or _etag(self._render(path, request))
        deadline = time.monotonic() + seconds if seconds else None
        async with self._changed:
            while not self._closed and _etag(self._render(path, request)) == before:
                left = deadline - time.monotonic() if deadline else None
                if left is not None and left <= 0:
                    return
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    return

    def _answer(self, path: str, request: web.BaseRequest) -> web.Response:
        rendered = self._render(path, request)
        if rendered is None:
            return web.Response(
                status=404, text="Not found\n", headers={**_FLAVOR, "ETag": _etag(None)}
            )
        text, kind = rendered
        return web.Response(
            text=text, content_type=kind, headers={**_FLAVOR, "ETag": _etag(rendered)}
        )

    def _render(self, path: str, request: web.BaseRequest) -> tuple[str, str] | None:
        """(text, content type) of a path now; None where there is nothing."""
        node: Any = self._tree()
        parts = [part for part in path.split("/") if part]
        for part in parts:
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        recursive = request.query.get("recursive", "").lower() == "true"
        alt = request.query.get("alt", "")
        if callable(node):
            return json.dumps(node()), "application/json"
        as_json = isinstance(node, tuple) or (recursive and isinstance(node, dict))
        if alt == "json" or (as_json and alt != "text"):
            theirs = not _USERS_NAMES.isdisjoint(parts)
            return json.dumps(_camel(node, verbatim=theirs)), "application/json"
        if isinstance(node, dict) and recursive:
            return "".join(_lines(node)), "application/text"
        if isinstance(node, dict):
            names = (
                f"{name}/" if isinstance(value, dict) else name for name, value in node.items()
            )
            return "".join(f"{name}\n" for name in names), "application/text"
        if isinstance(node, list | tuple):
            return "".join(f"{item}\n" for item in node), "application/text"
        return str(node), "application/text"


def _lines(node: Tree, before: str = "") -> Iterator[str]:
    """What is below ``node`` as text: a line for each leaf, its path and its value."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{before}{name}/")
        elif not callable(value):  # tokens are not part of a recursive answer
            for item in value if isinstance(value, list | tuple) else (value,):
                yield f"{before}{name} {item}\n"


def _bad_request(why: str) -> web.Response:
    return web.Response(status=400, text=f"{why}\n", headers=_FLAVOR)


def _etag(rendered: tuple[str, str] | None) -> str:
    text = rendered[0] if rendered else ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _camel(node: Any, *, verbatim: bool = False) -> Any:
    """``service-accounts`` becomes ``serviceAccounts``, except for names the user chose.

    Directories ``0/``, ``1/`` and so on become a list.
    """
    if not isinstance(node, dict):
        return node
    if node and not verbatim and list(node) == [str(number) for number in range(len(node))]:
        return [_camel(value) for value in node.values()]
    shown: dict[str, Any] = {}
    for name, value in node.items():
        if callable(value):  # tokens are not part of a recursive answer
            continue
        head, *rest = name.split("-")
        key = name if verbatim else head + "".join(word.capitalize() for word in rest)
        theirs = verbatim or name in (*_USERS_NAMES, "service-accounts")
        shown[key] = _camel(value, verbatim=theirs and name != "service-accounts")
        if name == "service-accounts":
            shown[key] = {account: _camel(inner) for account, inner in value.items()}
    return shown
