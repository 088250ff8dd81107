"""The front before fake-gcs-server: enforces what that server lets pass, and injects faults.

It checks tokens and their scopes, checksums and generation preconditions; gives gcloud what it
misses (``storageLayout``, ``/resumable/upload/``, 204 for a DELETE); all else is handed through,
streamed in both directions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from . import strikes
from .cloud import Cloud
from .errors import ApiError, ReplyLost
from .faults import Fault
from .gcs_server import GcsServer
from .life import Life
from .objects import Objects, verbatim
from .storage_calls import StorageCall, classify
from .tokens import check_scope
from .upload_calls import UploadCalls
from .uploads import check_conditions

_HOP_HEADERS = frozenset(
    {"connection", "host", "keep-alive", "transfer-encoding", "content-length", "authorization"}
)
_PIECE = 256 * 1024
_CLIENT_LEFT = 499  # in the record only: nobody is there to be answered


class StorageFront:
    """Serves Cloud Storage's JSON API.

    Args:
        spool: directory for uploads under way.
    """

    def __init__(
        self, cloud: Cloud, server: GcsServer, session: aiohttp.ClientSession, spool: Path
    ) -> None:
        self._cloud = cloud
        self._objects = Objects(server, session)
        self._uploads = UploadCalls(self._objects, spool, self._strike)

    async def serve(self, request: web.BaseRequest, caller: Life | None) -> web.StreamResponse:
        """Raises ReplyLost when the connection is to break, or the client has broken it."""
        call = classify(request.method, request.rel_url.raw_path)
        place = self._cloud.begin_http("storage", call.name, request, caller)
        status = 0
        try:
            answer = await self._answer(request, call)
            status = answer.status
            if call.is_upload and status == 200:
                self._cloud.end(place, answer=_resource(answer))
            return answer
        except ConnectionError:
            status = _CLIENT_LEFT
            raise ReplyLost from None
        except ApiError as error:
            status = error.code
            # A client that is still sending would see a broken connection, not the answer.
            async for _ in request.content.iter_chunked(_PIECE):
                pass
            return web.json_response(error.body(), status=error.code)
        finally:
            self._cloud.end(place, status=status)

    async def _answer(self, request: web.BaseRequest, call: StorageCall) -> web.StreamResponse:
        token = self._cloud.tokens.authenticate(request.headers.get("Authorization"))
        check_scope(token, "storage", writes=request.method not in ("GET", "HEAD"))
        if call.is_upload and not self._uploads.name(request):
            return await self._route(request, call)  # strikes once the name is read
        names = (call.bucket, f"{call.bucket}/{self._uploads.name(request)}")
        fault = await self._strike(call.name, names if call.is_upload else call.names)
        answer = await self._route(request, call)
        strikes.after(fault)
        return answer

    async def _strike(self, name: str, names: tuple[str, ...]) -> Fault | None:
        """What an injected fault does before a call takes effect; gives it for the time after."""
        fault = self._cloud.faults.take_answer(name, *names)
        await strikes.before(fault, self._cloud.clock)
        return fault

    async def _route(self, request: web.BaseRequest, call: StorageCall) -> web.StreamResponse:
        if call.is_upload:
            return await self._uploads.serve(request, call.bucket)
        if call.name == "storage.buckets.getStorageLayout":
            return await self._layout(call.bucket)
        if call.name == "storage.objects.delete":
            return await self._delete(request, call)
        if call.object and any(name.startswith("if") for name in request.query):
            async with self._objects.lock(call.bucket, call.object):
                current = await self._objects.current(call.bucket, call.object)
                if current is not None or request.method != "GET":
                    check_conditions(current, dict(request.query))
                if request.method != "GET":
                    return await self._pass_on(request)
        return await self._pass_on(request)

    async def _delete(self, request: web.BaseRequest, call: StorageCall) -> web.StreamResponse:
        async with self._objects.lock(call.bucket, call.object):
            current = await self._objects.current(call.bucket, call.object)
            if current is not None:
                check_conditions(current, dict(request.query))
                if request.query.get("generation") not in (None, current["generation"]):
                    current = None
            if current is None:
                raise ApiError(404, "notFound", f"No such object: {call.bucket}/{call.object}")
            return await self._pass_on(request)

    async def _layout(self, bucket: str) -> web.Response:
        await self._objects.check_bucket(bucket)
        layout = {
            "kind": "storage#storageLayout",
            "bucket": bucket,
            "location": "EUROPE-WEST1",
            "locationType": "region",
            "hierarchicalNamespace": {"enabled": False},
        }
        return web.json_response(layout)

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        """Hand the request through and the answer back, neither held in memory."""
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP_HEADERS
        ]
        body = request.content.iter_chunked(_PIECE) if request.can_read_body else None
        async with self._objects.session.request(
            request.method,
            verbatim(self._objects.url + request.rel_url.raw_path_qs),
            headers=headers,
            data=body,
            allow_redirects=False,
            auto_decompress=False,
        ) as found:
            kept = {
                name: value
                for name, value in found.headers.items()
                if name.lower() not in _HOP_HEADERS
            }
            if request.method not in ("GET", "HEAD"):
                return await _short(request, found, kept)
            answer = web.StreamResponse(status=found.status, headers=kept)
            answer.content_length = found.content_length
            await answer.prepare(request)
            if request.method == "GET":
                async for piece in found.content.iter_chunked(_PIECE):
                    await answer.write(piece)
            await answer.write_eof()
            return answer


async def _short(
    request: web.BaseRequest, found: aiohttp.ClientResponse, headers: dict[str, str]
) -> web.Response:
    """The answer to a change; a successful DELETE is 204 (gcloud breaks on 200 with ``null``)."""
    body = await found.read()
    if request.method == "DELETE" and found.status == 200:
        return web.Response(status=204)
    return web.Response(status=found.status, body=body, headers=headers)


def _resource(answer: web.StreamResponse) -> dict[str, Any] | None:
    """The object an upload made; None for the answer that only begins one."""
    body = answer.body if isinstance(answer, web.Response) else None
    return json.loads(body) if isinstance(body, bytes) and body else None
