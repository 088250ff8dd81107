"""One HTTP(S) endpoint of the cloud: keep-alive connections, one per thread, no retries.

Retrying is decided above (``retrying``), where it is known for how long it makes sense.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, TypeVar

from .errors import CloudError

Body = bytes | IO[bytes] | Iterable[bytes] | None
T = TypeVar("T")

# Answers that another try may turn: https://cloud.google.com/storage/docs/retry-strategy. 401 is
# among them because a token may have expired on the way; whoever sends one drops its token.
TRANSIENT = frozenset({0, 401, 408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Endpoint:
    """Requests to ``base_url`` (scheme and host; a path in it is put before every path)."""

    def __init__(self, base_url: str, timeout: float = 60.0) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CloudError(f"'{base_url}' is not an http(s) endpoint")
        self.base_url = base_url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._timeout = timeout
        self._local = threading.local()

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: Body = None,
        timeout: float | None = None,
    ) -> Reply:
        """Send one request, read the whole answer. Raises CloudError (status 0) without one."""
        response = self.open(method, path, headers=headers, body=body, timeout=timeout)
        try:
            return Reply(response.status, response.headers, response.read())
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._no_answer(method, path, error) from error

    def open(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: Body = None,
        timeout: float | None = None,
    ) -> http.client.HTTPResponse:
        """Like :meth:`request`, with the answer's body still to be read by the caller."""
        try:
            connection = self._connection(timeout or self._timeout)
            connection.request(method, self._path + path, body=body, headers=headers or {})
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._no_answer(method, path, error) from error

    def close(self) -> None:
        """Close this thread's connection; the next request opens another."""
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=timeout)
            self._local.connection = connection
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection

    def _no_answer(self, method: str, path: str, error: Exception) -> CloudError:
        reason = str(error) or type(error).__name__
        return CloudError(f"{method} {self.base_url}{path.partition('?')[0]}: no answer ({reason})")


def retrying(
    call: Callable[[], T],
    until: float,
    *,
    first_delay: float = 0.25,
    max_delay: float = 15.0,
    give_up: Callable[[], bool] = lambda: False,
) -> T:
    """``call()`` again while it raises a transient CloudError, until ``until`` (unix seconds).

    A first try is always made. The last error is raised when time is up, when ``give_up()``
    says so, or at once when trying again cannot help.
    """
    delay = first_delay
    while True:
        try:
            return call()
        except CloudError as error:
            remaining = until - time.time()
            if error.status not in TRANSIENT or remaining <= 0 or give_up():
                raise
            time.sleep(min(remaining, delay * random.uniform(0.5, 1.0)))
            delay = min(max_delay, delay * 2)
