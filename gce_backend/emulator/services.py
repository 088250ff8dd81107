"""The three HTTP services on their sockets: compute, storage, and each instance's metadata.

A caller is known by the address it called: every instance has one of its own (``doors.py``).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from . import batch, billing, os_login_calls
from .api import Api, Request
from .cloud import Cloud
from .control import Control
from .errors import ApiError, ReplyLost, unexpected
from .life import Life
from .os_login_calls import OsLoginCalls
from .permissions import Permissions
from .secret_manager import SecretManager
from .storage_front import StorageFront
from .visitors import refusal

Serve = Callable[[web.BaseRequest, Life | None], Awaitable[web.StreamResponse]]

_POWER = "/_emulator/power/"


class Services:
    """Turns aiohttp's requests into calls of the emulated services."""

    def __init__(self, cloud: Cloud, front: StorageFront) -> None:
        self._cloud = cloud
        self._api = Api(cloud)
        self._front = front
        self.secrets = SecretManager(cloud)
        self._os_login = OsLoginCalls(cloud)
        self._permissions = Permissions(cloud)
        self._control = Control(cloud, self.secrets)

    async def compute(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._guarded(request, self._compute)

    async def metadata(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._guarded(request, self._metadata)

    async def storage(self, request: web.BaseRequest) -> web.StreamResponse:
        """Errors are the front's own business: an answer may be half sent already."""
        if (refused := refusal(request)) is not None:
            return refused
        caller = self._caller(request)
        if self._is_cut_off(caller):
            return self._break(request)
        try:
            return await self._front.serve(request, caller)
        except ReplyLost:
            return self._break(request)

    async def _guarded(self, request: web.BaseRequest, serve: Serve) -> web.StreamResponse:
        """No page's request gets in, and nothing but an answer of the API gets out."""
        if (refused := refusal(request)) is not None:
            return refused
        try:
            return await serve(request, self._caller(request))
        except ReplyLost:
            return self._break(request)
        except (ConnectionError, web.HTTPException):  # the client left; aiohttp's own answers
            raise
        except Exception as error:
            failure = error if isinstance(error, ApiError) else unexpected(error)
            return web.json_response(failure.body(), status=failure.code)

    async def _compute(self, request: web.BaseRequest, caller: Life | None) -> web.StreamResponse:
        if request.path.startswith("/_emulator/"):
            return await self._control.handle(request)
        if self._is_cut_off(caller):
            return self._break(request)
        if request.path == batch.PATH:
            content = await request.content.read()
            kind, body = await batch.serve(self._api, request.headers, content, caller)
            return web.Response(body=body, headers={"Content-Type": kind})
        if request.path.startswith(os_login_calls.PREFIX):
            return await self._os_login.serve(request, caller)
        if (prices := billing.serve(request)) is not None:
            return prices
        if (secret := await self.secrets.serve(request, caller)) is not None:
            return secret
        if (answer := await self._permissions.serve(request)) is not None:
            return answer
        reply = await self._api.dispatch(
            Request(
                method=request.method,
                path=request.rel_url.raw_path,
                query=dict(request.query),
                headers=request.headers,
                body=await request.content.read(),
                caller=caller,
            )
        )
        text = "" if reply.body is None else json.dumps(reply.body)
        return web.Response(status=reply.status, text=text, content_type="application/json")

    async def _metadata(self, request: web.BaseRequest, caller: Life | None) -> web.StreamResponse:
        if caller is None:
            return web.Response(status=404)
        if request.method == "POST" and request.path.startswith(_POWER):
            # In the background: the process that asks is among those that end.
            self._cloud.spawn(caller.power_from_inside(request.path.removeprefix(_POWER)))
            return web.Response(text="ok\n")
        return await caller.metadata.handle(request)

    def _caller(self, request: web.BaseRequest) -> Life | None:
        transport = request.transport
        address: Any = transport.get_extra_info("sockname") if transport else None
        return self._cloud.by_address.get(address[0]) if address else None

    def _is_cut_off(self, caller: Life | None) -> bool:
        return caller is not None and self._cloud.faults.network_is_cut(*caller.instance.names)

    def _break(self, request: web.BaseRequest) -> web.Response:
        """End the connection without an answer."""
        if request.transport is not None:
            request.transport.close()
        return web.Response(status=500)
