"""The bytes of a request, however they are framed, with bounded memory."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler

from .errors import invalid
from .files import CHUNK_BYTES


class RequestBody:
    """The body of a request, with a length or in chunks (what ``requests`` does with an empty
    file)."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._source = handler.rfile
        self._chunked = "chunked" in (handler.headers.get("Transfer-Encoding") or "").lower()
        given = handler.headers.get("Content-Length")
        self.length = None if self._chunked else int(given or 0)
        self._left = self.length or 0  # of the body, or of the chunk
        self._done = not self._chunked and self._left == 0

    def read(self, amount: int) -> bytes:
        """Up to ``amount`` bytes; b"" at the end. ConnectionError when the client breaks off."""
        if self._done:
            return b""
        if self._chunked and self._left == 0 and not self._next_chunk():
            return b""
        data = self._source.read(min(amount, self._left))
        if not data:
            raise ConnectionError("the client went away in the middle of a request")
        self._left -= len(data)
        if self._left == 0:
            if self._chunked:
                self._source.readline()
            else:
                self._done = True
        return data

    def read_all(self, limit: int) -> bytes:
        parts, total = [], 0
        while part := self.read(CHUNK_BYTES):
            total += len(part)
            if total > limit:
                raise invalid(f"the request's body is larger than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    def discard(self, budget: float = CHUNK_BYTES) -> bool:
        """Read what is left, up to ``budget`` bytes; False when there is more."""
        try:
            while budget > 0:
                part = self.read(65536)
                if not part:
                    return True
                budget -= len(part)
        except (OSError, ValueError):
            return False
        return False

    def _next_chunk(self) -> bool:
        self._left = int(self._source.readline().partition(b";")[0], 16)
        if self._left == 0:
            while self._source.readline() not in (b"\r\n", b"\n", b""):
                pass  # trailers
            self._done = True
        return self._left > 0
