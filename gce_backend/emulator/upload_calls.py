"""The requests that upload: media, multipart, and resumable in as many chunks as they take."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from . import strikes
from .errors import ApiError, invalid
from .faults import Fault
from .objects import Objects
from .storage_calls import check_path
from .uploads import MultipartBody, Upload

_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_PIECE = 256 * 1024

_FINISHED = 1000  # uploads whose answer is kept

Strike = Callable[[str, tuple[str, ...]], Awaitable[Fault | None]]


@dataclass(frozen=True)
class _Finished:
    """A resumable upload that has become the object ``name``, and the answer that said so."""

    name: str
    body: bytes


class UploadCalls:
    """Serves uploads.

    Args:
        spool: directory for those under way.
        strike: lets an injected fault do its work, see ``storage_front.py``.
    """

    def __init__(self, objects: Objects, spool: Path, strike: Strike) -> None:
        self._objects = objects
        self._spool = spool
        self._strike = strike
        self._uploads: dict[str, Upload] = {}
        # Whose last reply may have been lost, the newest last; see `_again`.
        self._finished: OrderedDict[str, _Finished] = OrderedDict()

    def name(self, request: web.BaseRequest) -> str:
        """The object, where it is in the query or known from the session."""
        identifier = request.query.get("upload_id", "")
        if identifier in self._finished:
            return self._finished[identifier].name
        upload = self._uploads.get(identifier)
        return upload.name if upload else request.query.get("name", "")

    async def serve(self, request: web.BaseRequest, bucket: str) -> web.StreamResponse:
        """One request of an upload, of whatever kind."""
        if identifier := request.query.get("upload_id"):
            return await self._continue(request, identifier)
        kind = request.query.get("uploadType") or request.headers.get("X-Goog-Upload-Protocol")
        upload = Upload(bucket, {}, dict(request.query), self._spool)
        await self._objects.check_bucket(bucket)
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
            status, answer = await self._finish(request, upload)
            strikes.after(fault)
            return _json(status, answer)
        finally:
            upload.discard()

    async def _begin(self, request: web.BaseRequest, upload: Upload) -> web.Response:
        text = await request.content.read()
        try:
            upload.metadata = json.loads(text) if text else {}
        except (RecursionError, ValueError) as error:
            raise invalid("Parse Error") from error
        if not isinstance(upload.metadata, dict):
            raise invalid("Parse Error")
        if kind := request.headers.get("X-Upload-Content-Type"):
            upload.metadata.setdefault("contentType", kind)
        fault = await self._check_named(upload)
        await self._objects.check(upload.bucket, upload.name, upload.query)
        upload.file.touch()
        self._uploads[upload.identifier] = upload
        path = f"{request.rel_url.raw_path}?uploadType=resumable&upload_id={upload.identifier}"
        location = f"http://{request.headers.get('Host', request.host)}{path}"
        strikes.after(fault)
        headers = {"Location": location, "X-GUploader-UploadID": upload.identifier}
        return web.Response(headers=headers)

    async def _continue(self, request: web.BaseRequest, identifier: str) -> web.StreamResponse:
        """A chunk of a resumable upload, or the question how much has arrived."""
        if identifier in self._finished and request.method != "DELETE":
            return await self._again(request, identifier)
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
            status, body = await self._finish(request, upload)
        finally:
            upload.discard()
        if status == 200:
            self._finished[identifier] = _Finished(upload.name, body)
            if len(self._finished) > _FINISHED:
                self._finished.popitem(last=False)
        return _json(status, body)

    async def _again(self, request: web.BaseRequest, identifier: str) -> web.Response:
        """What the last chunk was answered with, for a client that did not hear it."""
        async for _ in request.content.iter_chunked(_PIECE):
            pass
        return _json(200, self._finished[identifier].body)

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

    async def _finish(self, request: web.BaseRequest, upload: Upload) -> tuple[int, bytes]:
        upload.check(request.headers.get("X-Goog-Hash", ""))
        return await self._objects.store(upload)

    async def _check_named(self, upload: Upload) -> Fault | None:
        """Now that the metadata are read: is there a name, and a fault for it?"""
        if not upload.name:
            raise ApiError(400, "required", "Required parameter: name")
        check_path(upload.name)
        if "name" in upload.query:
            return None  # has struck before
        names = (upload.bucket, f"{upload.bucket}/{upload.name}")
        return await self._strike("storage.objects.insert", names)


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")
