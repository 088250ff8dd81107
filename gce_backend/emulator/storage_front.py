"""The front before fake-gcs-server: enforces what that server lets pass, and injects faults.

It checks tokens and their scopes, names, checksums and generation preconditions; gives gcloud
what it misses (``storageLayout``, ``/resumable/upload/``, 204 for a DELETE); all else of the JSON
API is handed through, streamed in both directions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
from aiohttp import web

from . import strikes
from .cloud import Cloud
from .errors import ApiError, ReplyLost, invalid, not_emulated
from .faults import Fault
from .gcs_server import GcsServer
from .life import Life
from .objects import Objects, verbatim
from .storage_calls import UNKNOWN, StorageCall, check_path, classify
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
        check_path(unquote(request.rel_url.raw_path))
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
        if call.name == UNKNOWN and not request.path.startswith("/storage/v1/"):
            # The server's other doors (batch, forms, its own settings) pass by every check here.
            raise not_emulated(f"{request.method} {request.path}")
        if call.name == "storage.buckets.getStorageLayout":
            return await self._layout(call.bucket)
        if call.name == "storage.objects.delete":
            return await self._delete(request, call)
        body = None
        if call.name == "storage.objects.compose":
            body = await request.content.read()
            await self._check_parts(call.bucket, body)
        elif call.source is not None:
            await self._check_source(*call.source, _of_source(request.query))
        if call.object and any(name.startswith("if") for name in request.query):
            async with self._objects.lock(call.bucket, call.object):
                current = await self._objects.current(call.bucket, call.object)
                if current is not None or request.method != "GET":
                    check_conditions(current, dict(request.query))
                if request.method != "GET":
                    return await self._pass_on(request, body)
        return await self._pass_on(request, body)

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

    async def _check_parts(self, bucket: str, body: bytes) -> None:
        """What an object is to be composed of."""
        try:
            for part in json.loads(body)["sourceObjects"]:
                check_path(part["name"])
                conditions = dict(part.get("objectPreconditions", {}))
                if "generation" in part:
                    conditions["generation"] = part["generation"]
                await self._check_source(bucket, part["name"], conditions)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise invalid("A compose request needs sourceObjects with names.") from error

    async def _check_source(self, bucket: str, name: str, conditions: dict[str, Any]) -> None:
        """An object that is to be copied: as ``conditions``, and its ``generation``, want it."""
        if not conditions:
            return
        current = await self._objects.current(bucket, name)
        wanted = conditions.get("generation")
        if current is None or (wanted is not None and str(wanted) != str(current["generation"])):
            raise ApiError(404, "notFound", f"No such object: {bucket}/{name}")
        check_conditions(current, {key: str(value) for key, value in conditions.items()})

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

    async def _pass_on(
        self, request: web.BaseRequest, text: bytes | None = None
    ) -> web.StreamResponse:
        """Hand the request through and the answer back, neither held in memory.

        Args:
            text: the request's body, where it has been read already.
        """
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP_HEADERS
        ]
        body: Any = text
        if text is None and request.can_read_body:
            body = request.content.iter_chunked(_PIECE)
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


def _of_source(query: Mapping[str, str]) -> dict[str, Any]:
    """``ifSourceGenerationMatch`` and its like, as preconditions on the source alone."""
    return {
        name.replace("ifSource", "if").replace("sourceG", "g"): value
        for name, value in query.items()
        if name.startswith(("ifSource", "sourceGeneration"))
    }


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
