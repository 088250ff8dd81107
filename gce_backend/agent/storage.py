"""Cloud Storage's JSON API over ``http.client``: get, stat, list, put, delete.

``STORAGE_EMULATOR_HOST`` (with scheme) points elsewhere for an emulator; tokens are sent to it
as well. Nothing here retries by itself except resumable uploads, which pick up where the server
stands; callers wrap calls in ``endpoint.retrying`` with the time they have.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .endpoint import TRANSIENT, Body, Endpoint, Reply
from .errors import CloudError
from .metadata import MetadataServer

DEFAULT_URL = "https://storage.googleapis.com"
# Up to here one request (Google's own client draws the line here too), beyond it a resumable
# upload in chunks that are a multiple of 256 KiB.
MULTIPART_MAX_BYTES = 8 * 1024 * 1024
CHUNK_BYTES = 8 * 1024 * 1024
_RESUME_TRIES = 5
_RESUME_PAUSE_S = 0.25  # after the first failure in a row; twice as long after each further one


@dataclass(frozen=True)
class StoredObject:
    """An object as the bucket describes it."""

    bucket: str
    name: str
    size: int
    md5: str  # hex; "" for an object that has none (composite)
    crc32c: str  # base64, as the API gives it
    generation: str


class Storage:
    def __init__(self, metadata: MetadataServer, url: str | None = None) -> None:
        url = url or os.environ.get("STORAGE_EMULATOR_HOST") or DEFAULT_URL
        self._endpoint = Endpoint(url, timeout=60.0)
        self._metadata = metadata

    # -- reading ------------------------------------------------------------------------------

    def get(self, bucket: str, name: str) -> bytes:
        """The object's bytes; CloudError with status 404 when there is none."""
        reply = self._call(
            "GET", _object_path(bucket, name) + "?alt=media", f"gs://{bucket}/{name}"
        )
        return reply.body

    def download(self, bucket: str, name: str, sink: IO[bytes]) -> int:
        """Stream the object into ``sink``; returns the number of bytes."""
        with self.open(bucket, name) as source:
            total = 0
            while chunk := source.read(1024 * 1024):
                sink.write(chunk)
                total += len(chunk)
            if source.expected is not None and total != source.expected:
                raise CloudError(f"gs://{bucket}/{name}: {total} of {source.expected} bytes came")
            return total

    def open(self, bucket: str, name: str) -> ObjectStream:
        """The object's bytes as they come; CloudError with status 404 when there is none."""
        response = self._endpoint.open(
            "GET", _object_path(bucket, name) + "?alt=media", headers=self._headers()
        )
        if response.status != 200:
            body = response.read()
            self._refuse(f"GET gs://{bucket}/{name}", response.status, body)
        length = response.headers.get("Content-Length")
        return ObjectStream(self._endpoint, response, int(length) if length else None)

    def stat(self, bucket: str, name: str) -> StoredObject | None:
        """What the bucket says of the object, or None when there is none."""
        try:
            reply = self._call("GET", _object_path(bucket, name), f"gs://{bucket}/{name}")
        except CloudError as error:
            if error.status == 404:
                return None
            raise
        return _stored(bucket, _json(reply))

    def objects(self, bucket: str, prefix: str, *, start: str = "") -> Iterator[StoredObject]:
        """Objects under ``prefix``, in the order of their names, from ``start`` on."""
        for page in self._pages(bucket, {"prefix": prefix, "startOffset": start}):
            for item in page.get("items", []):
                # An emulator may not know startOffset; the name decides.
                if item["name"] >= start:
                    yield _stored(bucket, item)

    def list_directory(self, bucket: str, prefix: str) -> tuple[list[StoredObject], list[str]]:
        """Objects right below ``prefix`` (ending in a slash), and the "directories" there."""
        objects: list[StoredObject] = []
        directories: list[str] = []
        for page in self._pages(bucket, {"prefix": prefix, "delimiter": "/"}):
            objects += [_stored(bucket, item) for item in page.get("items", [])]
            directories += page.get("prefixes", [])
        return objects, directories

    def _pages(self, bucket: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        query = {key: value for key, value in query.items() if value}
        while True:
            path = f"/storage/v1/b/{urllib.parse.quote(bucket)}/o?{urllib.parse.urlencode(query)}"
            page = _json(self._call("GET", path, f"gs://{bucket}/{query['prefix']}*"))
            yield page
            if not page.get("nextPageToken"):
                return
            query = {**query, "pageToken": page["nextPageToken"]}

    # -- writing ------------------------------------------------------------------------------

    def put(
        self,
        bucket: str,
        name: str,
        data: bytes,
        *,
        md5: str,
        only_if_absent: bool = False,
        generation: str | None = None,
    ) -> StoredObject:
        """Write a small object in one request. ``md5`` (hex) goes along and must come back.

        ``only_if_absent``: CloudError with status 412 when the name is taken; ``generation``: when
        the object is another one by now ("0": when there is one).
        """
        generation = "0" if only_if_absent else generation
        boundary = secrets.token_hex(16)
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{_resource(name, md5)}\r\n--{boundary}\r\n"
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        condition = f"&ifGenerationMatch={generation}" if generation is not None else ""
        reply = self._call(
            "POST",
            f"{_upload_path(bucket)}?uploadType=multipart{condition}",
            f"gs://{bucket}/{name}",
            body=body,
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
        )
        return _confirmed(bucket, reply, md5)

    def put_file(self, bucket: str, name: str, path: Path, *, size: int, md5: str) -> StoredObject:
        """Write a file of any size with bounded memory; ``md5`` (hex) is compared at the end."""
        if size <= MULTIPART_MAX_BYTES:
            return self.put(bucket, name, path.read_bytes(), md5=md5)
        session = self._start_resumable(bucket, name, md5, size)
        with path.open("rb") as file:
            return _confirmed(bucket, self._send_chunks(session, name, file, size), md5)

    def copy(self, bucket: str, source: str, target: str) -> StoredObject:
        """Copy within the bucket; no byte travels through here."""
        new = urllib.parse.quote(target, safe="")
        path = f"{_object_path(bucket, source)}/rewriteTo/b/{urllib.parse.quote(bucket)}/o/{new}"
        token = ""
        while True:  # a large object takes several calls
            query = f"?rewriteToken={urllib.parse.quote(token, safe='')}" if token else ""
            answer = _json(self._call("POST", path + query, f"gs://{bucket}/{target}"))
            if answer["done"]:
                return _stored(bucket, answer["resource"])
            token = str(answer["rewriteToken"])

    def delete(self, bucket: str, name: str, *, generation: str | None = None) -> None:
        """Delete the object; one that is already gone is fine, and so is another ``generation``."""
        condition = f"?ifGenerationMatch={generation}" if generation is not None else ""
        try:
            self._call("DELETE", _object_path(bucket, name) + condition, f"gs://{bucket}/{name}")
        except CloudError as error:
            if error.status not in (404, 412):
                raise

    def _start_resumable(self, bucket: str, name: str, md5: str, size: int) -> str:
        reply = self._call(
            "POST",
            f"{_upload_path(bucket)}?uploadType=resumable",
            f"gs://{bucket}/{name}",
            body=_resource(name, md5).encode(),
            headers={
                "Content-Type": "application/json; charset=UTF-8",
                "X-Upload-Content-Length": str(size),
            },
        )
        location = urllib.parse.urlsplit(reply.headers.get("Location", ""))
        if not location.path:
            raise CloudError(f"gs://{bucket}/{name}: resumable upload without a Location")
        return f"{location.path}?{location.query}"

    def _send_chunks(self, session: str, name: str, file: IO[bytes], size: int) -> Reply:
        offset, failures = 0, 0
        is_known = True  # how far the server is
        while True:
            span, chunk = f"bytes */{size}", b""  # asks for it
            if is_known:
                file.seek(offset)
                chunk = file.read(CHUNK_BYTES)
                span = f"bytes {offset}-{offset + len(chunk) - 1}/{size}"
            try:
                reply = self._send_range(session, span, chunk)
            except CloudError as error:
                failures += 1
                if failures > _RESUME_TRIES or error.status not in TRANSIENT:
                    raise
                is_known = False
                time.sleep(_RESUME_PAUSE_S * 2 ** (failures - 1))
                continue
            if reply.status in (200, 201):
                return reply
            moved = _next_offset(reply)
            if moved > offset:
                failures = 0
            elif is_known:
                failures += 1
            offset, is_known = moved, True
            if failures > _RESUME_TRIES:
                raise CloudError(f"{name}: the resumable upload does not advance past {offset}")

    def _send_range(self, session: str, span: str, chunk: bytes) -> Reply:
        headers = {**self._headers(), "Content-Range": span, "Content-Length": str(len(chunk))}
        reply = self._endpoint.request("PUT", session, body=chunk, headers=headers)
        if reply.status not in (200, 201, 308):
            self._refuse(f"PUT {span}", reply.status, reply.body)
        return reply

    # -- plumbing -----------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._metadata.token()}"}

    def _call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: Body = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        reply = self._endpoint.request(
            method, path, body=body, headers={**self._headers(), **(headers or {})}
        )
        if reply.status not in (200, 201, 204):
            self._refuse(f"{method} {what}", reply.status, reply.body)
        return reply

    def _refuse(self, what: str, status: int, body: bytes) -> None:
        if status == 401:
            self._metadata.drop_token()
        raise CloudError(f"{what}: HTTP {status} {_reason(body)}", status)


class ObjectStream:
    """The body of an object being read; closing it early gives up the connection."""

    def __init__(self, endpoint: Endpoint, response: Any, expected: int | None) -> None:
        self._endpoint, self._response = endpoint, response
        self.expected = expected  # bytes, when the server says so

    def read(self, amount: int) -> bytes:
        try:
            return bytes(self._response.read(amount))
        except (OSError, http.client.HTTPException) as error:
            self._endpoint.close()
            raise CloudError(f"the download broke off ({error})") from error

    def __enter__(self) -> ObjectStream:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._response.isclosed():
            self._endpoint.close()


def _object_path(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{urllib.parse.quote(bucket)}/o/{urllib.parse.quote(name, safe='')}"


def _upload_path(bucket: str) -> str:
    return f"/upload/storage/v1/b/{urllib.parse.quote(bucket)}/o"


def _resource(name: str, md5: str) -> str:
    return json.dumps({"name": name, "md5Hash": base64.b64encode(bytes.fromhex(md5)).decode()})


def _json(reply: Reply) -> dict[str, Any]:
    """A good answer's JSON object. What is none comes from something in between."""
    try:
        return dict(json.loads(reply.body))
    except (ValueError, TypeError) as error:
        text = reply.body[:100].decode(errors="replace")
        raise CloudError(f"HTTP {reply.status} with what is no JSON object: {text}", 502) from error


def _stored(bucket: str, item: dict[str, Any]) -> StoredObject:
    return StoredObject(
        bucket=bucket,
        name=str(item.get("name", "")),
        size=int(item.get("size", 0)),
        md5=base64.b64decode(item.get("md5Hash") or "").hex(),
        crc32c=str(item.get("crc32c", "")),
        generation=str(item.get("generation", "")),
    )


def _confirmed(bucket: str, reply: Reply, md5: str) -> StoredObject:
    stored = _stored(bucket, _json(reply))
    if stored.md5 != md5:
        raise CloudError(
            f"gs://{bucket}/{stored.name}: the bucket has md5 '{stored.md5}', '{md5}' was sent",
            status=503,  # sending it again may help
        )
    return stored


def _next_offset(reply: Reply) -> int:
    """First byte that the server does not have yet, from ``Range: bytes=0-N``."""
    received = reply.headers.get("Range", "")
    return int(received.rpartition("-")[2]) + 1 if received else 0


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace").strip()
