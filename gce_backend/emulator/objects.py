"""The objects as the server behind the front has them, with a lock for each.

The lock makes reading a generation and acting on it one step, which the server does not offer.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from .errors import ApiError
from .gcs_server import GcsServer
from .uploads import Upload, check_conditions


class Objects:
    """Over one server."""

    def __init__(self, server: GcsServer, session: aiohttp.ClientSession) -> None:
        self.url = server.url
        self.session = session
        self._server = server
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    def lock(self, bucket: str, name: str) -> asyncio.Lock:
        return self._locks.setdefault((bucket, name), asyncio.Lock())

    async def current(self, bucket: str, name: str) -> dict[str, Any] | None:
        """The object's resource now; None: there is none."""
        path = f"/storage/v1/b/{quote(bucket)}/o/{quote(name, safe='')}"
        async with self.session.get(verbatim(self.url + path)) as answer:
            if answer.status != 200:
                return None
            found: dict[str, Any] = await answer.json(content_type=None)
            return found

    async def check(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """Raises ApiError 412 when a precondition in ``query`` does not hold."""
        check_conditions(await self.current(bucket, name), query)

    async def check_bucket(self, bucket: str) -> None:
        """Raises ApiError 404."""
        async with self.session.get(f"{self.url}/storage/v1/b/{quote(bucket, safe='')}") as answer:
            if answer.status != 200:
                raise ApiError(404, "notFound", "The specified bucket does not exist.")

    async def store(self, upload: Upload) -> tuple[int, bytes]:
        """Make an upload the object, if its preconditions hold; (HTTP status, answer)."""
        async with self.lock(upload.bucket, upload.name):
            await self.check(upload.bucket, upload.name, upload.query)
            return await self._server.store(self.session, upload)


def verbatim(url: str) -> URL:
    """Keep the percent-encoding: an object's name may hold encoded slashes."""
    return URL(url, encoded=True)
