"""Uploads: received on disk, checked there, stored only when whole and right.

fake-gcs-server keeps an upload in memory (3 GB for an object of 1 GB, measured), takes a wrong
checksum, and knows no ``ifGenerationMatch`` for what it receives. So this end receives, in
bounded memory; a failed check leaves the object that was there untouched.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c

from .errors import ApiError, invalid

_BOUNDARY = re.compile(r"boundary=(?:\"([^\"]+)\"|'([^']+)'|([^;\s]+))", re.IGNORECASE)
_HEAD_BYTES = 1024 * 1024  # part headers and metadata of a multipart upload together


@dataclass
class Upload:
    """The bytes of one object on their way, in a file of the directory ``spool``."""

    bucket: str
    metadata: dict[str, Any]
    query: dict[str, str]
    spool: Path
    size: int = 0
    identifier: str = field(default_factory=lambda: secrets.token_hex(16))
    _md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))
    _crc32c: Any = field(default_factory=google_crc32c.Checksum)

    @property
    def file(self) -> Path:
        return self.spool / self.identifier

    @property
    def name(self) -> str:
        """Of the object."""
        return str(self.metadata.get("name") or self.query.get("name", ""))

    @property
    def md5(self) -> str:
        return base64.b64encode(self._md5.digest()).decode()

    @property
    def crc32c(self) -> str:
        return base64.b64encode(self._crc32c.digest()).decode()

    def append(self, data: bytes) -> None:
        with self.file.open("ab") as file:
            file.write(data)
        self._md5.update(data)
        self._crc32c.update(data)
        self.size += len(data)

    async def receive(self, pieces: AsyncIterator[bytes]) -> None:
        self.file.touch()
        with self.file.open("ab") as file:
            async for piece in pieces:
                file.write(piece)
                self._md5.update(piece)
                self._crc32c.update(piece)
                self.size += len(piece)

    def check(self, x_goog_hash: str = "") -> None:
        """Compare with the checksums that the metadata or ``X-Goog-Hash`` announced.

        Raises:
            ApiError: 400; nothing is stored.
        """
        announced = dict(
            part.strip().partition("=")[::2] for part in x_goog_hash.split(",") if part
        )
        for kind, sent, found in (
            ("MD5", self.metadata.get("md5Hash") or announced.get("md5"), self.md5),
            ("CRC32C", self.metadata.get("crc32c") or announced.get("crc32c"), self.crc32c),
        ):
            if sent and sent != found:
                raise invalid(
                    f'Provided {kind} hash "{sent}" doesn\'t match calculated {kind} hash '
                    f'"{found}".'
                )

    def discard(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.file.unlink()


class MultipartBody:
    """Reads ``multipart/related``: JSON metadata, then the content.

    Takes what clients really send: CRLF or bare LF, boundaries in either quotes (apitools).
    """

    def __init__(self, content_type: str, pieces: AsyncIterator[bytes]) -> None:
        match = _BOUNDARY.search(content_type)
        if match is None:
            raise invalid("Multipart upload without a boundary.")
        self._boundary = b"--" + next(group for group in match.groups() if group).encode()
        self._pieces = pieces
        self._buffer = b""

    async def metadata(self) -> dict[str, Any]:
        """The first part; afterwards :meth:`content` gives the second."""
        await self._until(self._boundary)
        await self._headers()
        text = await self._until(self._boundary)
        headers = await self._headers()
        try:
            parsed = json.loads(text)
        except (RecursionError, ValueError) as error:
            raise invalid("Multipart upload whose first part is no JSON.") from error
        if not isinstance(parsed, dict):
            raise invalid("Multipart upload whose first part is no JSON object.")
        if content_type := headers.get(b"content-type"):
            parsed.setdefault("contentType", content_type.decode())
        return parsed

    async def content(self) -> AsyncIterator[bytes]:
        """The bytes up to the last boundary, holding back only what may be part of it."""
        end = b"\n" + self._boundary
        held = len(end) + 1  # a CR before it belongs to it as well
        while (at := self._buffer.find(end)) < 0:
            if len(self._buffer) > held:
                yield self._buffer[:-held]
                self._buffer = self._buffer[-held:]
            try:
                self._buffer += await anext(self._pieces)
            except StopAsyncIteration:
                raise invalid("Multipart upload that ends before its last boundary.") from None
        yield self._buffer[:at].removesuffix(b"\r")
        async for _ in self._pieces:
            pass

    async def _headers(self) -> dict[bytes, bytes]:
        await self._until(b"\n")  # the rest of the boundary's line
        headers = {}
        while line := (await self._until(b"\n")).strip():
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        return headers

    async def _until(self, mark: bytes) -> bytes:
        """All before ``mark``, which is skipped."""
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > _HEAD_BYTES:
                raise invalid("Multipart upload whose metadata do not end.")
            try:
                self._buffer += await anext(self._pieces)
            except StopAsyncIteration:
                raise invalid("Multipart upload that ends too early.") from None
        found, self._buffer = self._buffer[:at], self._buffer[at + len(mark) :]
        return found


def condition_failed() -> ApiError:
    return ApiError(
        412,
        "conditionNotMet",
        "At least one of the pre-conditions you specified did not hold.",
    )


def check_conditions(current: dict[str, Any] | None, query: dict[str, str]) -> None:
    """The generation preconditions of a call against the object as it is.

    Raises:
        ApiError: 412.
    """
    generation = str(current["generation"]) if current else "0"
    metageneration = str(current["metageneration"]) if current else "0"
    for parameter, value, wanted in (
        ("ifGenerationMatch", generation, True),
        ("ifGenerationNotMatch", generation, False),
        ("ifMetagenerationMatch", metageneration, True),
        ("ifMetagenerationNotMatch", metageneration, False),
    ):
        if parameter in query and (value == query[parameter]) is not wanted:
            raise condition_failed()
