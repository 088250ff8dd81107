"""The front before fake-gcs-server: enforces what that server lets pass, and injects faults.

It checks tokens and their scopes, checksums and generation preconditions; gives gcloud what it
misses (``storageLayout``, ``/resumable/upload/``, 204 for a DELETE); all else is handed through,
streamed in both directions.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

from .calls import Call
from .cloud import Cloud
from .errors import ApiError, ReplyLost, invalid
from .faults import Fault, FaultKind, answer_error
from .gcs_server import GcsServer
from .life import Life
from .storage_calls import StorageCall, classify
from .tokens import check_scope
from .uploads import MultipartBody, Upload, check_conditions

_HOP_HEADERS = frozenset(
    {"connection", "host", "keep-alive", "transfer-encoding", "content-length", "authorization"}
)
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_PIECE = 256 * 1024


class StorageFront:
    """Serves Cloud Storage's JSON API.

    Args:
        spool: directory for uploads under way.
    """

    def __init__(
        self, cloud: Cloud, server: GcsServer, session: aiohttp.ClientSession, spool: Path
    ) -> None:
        self._cloud = cloud
        self._server = server
        self._session = session
        self._spool = spool
        self._uploads: dict[str, Upload] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def serve(self, request: web.BaseRequest, caller: Life | None) -> web.StreamResponse:
        """Raises ReplyLost when a fault wants the connection to break."""
        call = classify(request.method, request.rel_url.raw_path)
        place = self._cloud.begin(
            Call(
                at=self._cloud.clock.now(),
                service="storage",
                method=request.method,
                path=request.path,
                query=dict(request.query),
                body=None,
                status=None,
                name=call.name,
                caller=caller.instance.name if caller else "",
            )
        )
        status = 0
        try:
            answer = await self._answer(request, call)
            status = answer.status
            return answer
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
        if call.is_upload and not self._name(request):
            return await self._route(request, call)  # strikes once the name is read
        names = (call.bucket, f"{call.bucket}/{self._name(request)}")
        fault = await self._strike(call.name, names if call.is_upload else call.names)
        answer = await self._route(request, call)
        _lose_reply(fault)
        return answer

    async def _strike(self, name: str, names: tuple[str, ...]) -> Fault | None:
        """What an injected fault does before a call takes effect; gives it for the time after."""
        fault = self._cloud.faults.take_answer(name, *names)
        if fault is None:
            return None
        if fault.kind is FaultKind.SLOW:
            await asyncio.sleep(fault.seconds)
        elif fault.kind is FaultKind.REPLY_LOST_BEFORE:
            raise ReplyLost
        elif (error := answer_error(fault)) is not None:
            raise error
        return fault

    def _name(self, request: web.BaseRequest) -> str:
        """An upload's object, where it is in the query or known from its session."""
        upload = self._uploads.get(request.query.get("upload_id", ""))
        return upload.name if upload else request.query.get("name", "")

    async def _route(self, request: web.BaseRequest, call: StorageCall) -> web.StreamResponse:
        if call.is_upload:
            return await self._upload(request, call)
        if call.name == "storage.buckets.getStorageLayout":
            return await self._layout(call.bucket)
        if call.name == "storage.objects.delete":
            async with self._lock(call.bucket, call.object):
                current = await self._current(call.bucket, call.object)
                if current is not None:
                    check_conditions(current, dict(request.query))
                    if request.query.get("generation") not in (None, current["generation"]):
                        current = None
                if current is None:
                    raise _no_object(call)
                return await self._pass_on(request)
        if call.object and any(name.startswith("if") for name in request.query):
            async with self._lock(call.bucket, call.object):
                current = await self._current(call.bucket, call.object)
                if current is not None or request.method != "GET":
                    check_conditions(current, dict(request.query))
                return await self._pass_on(request)
        return await self._pass_on(request)

    # -- uploads --------------------------------------------------------------------------------

    async def _upload(self, request: web.BaseRequest, call: StorageCall) -> web.StreamResponse:
        if identifier := request.query.get("upload_id"):
            return await self._continue(request, identifier)
        kind = request.query.get("uploadType") or request.headers.get("X-Goog-Upload-Protocol")
        upload = Upload(call.bucket, {}, dict(request.query), self._spool)
        await self._check_bucket(call.bucket)
        if kind == "resumable":
            return await self._begin(request, upload)
        pieces = request.content.iter_chunked(_PIECE)
        try:
            if kind == "multipart":
                body = MultipartBody(request.headers.get("Content-Type", ""), aiter(pieces))
                upload.metadata = await body.metadata()
                fault = await self._check_named(upload)
                await upload.receive(body.content())
            else:
                upload.metadata = {"contentType": request.content_type}
                fault = await self._check_named(upload)
                await upload.receive(aiter(pieces))
            answer = await self._finish(request, upload)
            _lose_reply(fault)
            return answer
        finally:
            upload.discard()

    async def _begin(self, request: web.BaseRequest, upload: Upload) -> web.Response:
        text = await request.content.read()
        try:
            upload.metadata = json.loads(text) if text else {}
        except ValueError as error:
            raise invalid("Parse Error") from error
        if kind := request.headers.get("X-Upload-Content-Type"):
            upload.metadata.setdefault("contentType", kind)
        fault = await self._check_named(upload)
        async with self._lock(upload.bucket, upload.name):
            check_conditions(await self._current(upload.bucket, upload.name), upload.query)
        upload.file.touch()
        self._uploads[upload.identifier] = upload
        path = f"{request.rel_url.raw_path}?uploadType=resumable&upload_id={upload.identifier}"
        location = f"http://{request.headers.get('Host', request.host)}{path}"
        _lose_reply(fault)
        headers = {"Location": location, "X-GUploader-UploadID": upload.identifier}
        return web.Response(headers=headers)

    async def _continue(self, request: web.BaseRequest, identifier: str) -> web.StreamResponse:
        """A chunk of a resumable upload, or the question how much has arrived."""
        upload = self._uploads.get(identifier)
        if upload is None:
            raise ApiError(404, "notFound", f"Upload {identifier} was not found")
        if request.method == "DELETE":
            del self._uploads[identifier]
            upload.discard()
            return web.Response(status=499)
        start, total = self._range(request, upload)
        if start is not None:
            if start > upload.size:
                raise ApiError(
                    400, "invalid", f"Chunk from {start}, but {upload.size} bytes have arrived."
                )
            await self._take_chunk(request, upload, skip=upload.size - start)
        if total is None or upload.size < total:
            return self._incomplete(upload)
        del self._uploads[identifier]
        try:
            return await self._finish(request, upload)
        finally:
            upload.discard()

    def _range(self, request: web.BaseRequest, upload: Upload) -> tuple[int | None, int | None]:
        """(first byte of the chunk, size of the whole); None: no chunk, not known yet."""
        header = request.headers.get("Content-Range")
        if header is None:
            return 0, upload.size if request.content_length is None else request.content_length
        match = _RANGE.fullmatch(header)
        if match is None:
            raise invalid(f"Invalid Content-Range '{header}'.")
        first, _, whole = match.groups()
        return int(first) if first else None, None if whole == "*" else int(whole)

    async def _take_chunk(self, request: web.BaseRequest, upload: Upload, skip: int) -> None:
        """Append what is new of a chunk; what had arrived before is sent again after a loss."""
        async for piece in request.content.iter_chunked(_PIECE):
            fresh = piece[skip:]
            skip = max(skip - len(piece), 0)
            if fresh:
                upload.append(fresh)

    def _incomplete(self, upload: Upload) -> web.Response:
        headers = {"X-GUploader-UploadID": upload.identifier}
        if upload.size:
            headers["Range"] = f"bytes=0-{upload.size - 1}"
        return web.Response(status=308, reason="Resume Incomplete", headers=headers)

    async def _finish(self, request: web.BaseRequest, upload: Upload) -> web.Response:
        upload.check(request.headers.get("X-Goog-Hash", ""))
        async with self._lock(upload.bucket, upload.name):
            check_conditions(await self._current(upload.bucket, upload.name), upload.query)
            status, body = await self._server.store(self._session, upload)
        return web.Response(status=status, body=body, content_type="application/json")

    async def _check_named(self, upload: Upload) -> Fault | None:
        """Now that the metadata are read: is there a name, and a fault for it?"""
        if not upload.name:
            raise ApiError(400, "required", "Required parameter: name")
        if "name" in upload.query:
            return None  # has struck before
        names = (upload.bucket, f"{upload.bucket}/{upload.name}")
        return await self._strike("storage.objects.insert", names)

    # -- the server behind ----------------------------------------------------------------------

    def _lock(self, bucket: str, name: str) -> asyncio.Lock:
        return self._locks.setdefault((bucket, name), asyncio.Lock())

    async def _current(self, bucket: str, name: str) -> dict[str, Any] | None:
        path = f"/storage/v1/b/{quote(bucket)}/o/{quote(name, safe='')}"
        async with self._session.get(_verbatim(self._server.url + path)) as answer:
            if answer.status != 200:
                return None
            found: dict[str, Any] = await answer.json(content_type=None)
            return found

    async def _check_bucket(self, bucket: str) -> None:
        url = f"{self._server.url}/storage/v1/b/{quote(bucket)}"
        async with self._session.get(url) as answer:
            if answer.status != 200:
                raise ApiError(404, "notFound", "The specified bucket does not exist.")

    async def _layout(self, bucket: str) -> web.Response:
        await self._check_bucket(bucket)
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
        async with self._session.request(
            request.method,
            _verbatim(self._server.url + request.rel_url.raw_path_qs),
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


def _verbatim(url: str) -> URL:
    """Keep the percent-encoding: an object's name may hold encoded slashes."""
    return URL(url, encoded=True)


def _no_object(call: StorageCall) -> ApiError:
    return ApiError(404, "notFound", f"No such object: {call.bucket}/{call.object}")


def _lose_reply(fault: Fault | None) -> None:
    if fault is not None and fault.kind is FaultKind.REPLY_LOST_AFTER:
        raise ReplyLost
