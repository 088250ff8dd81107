"""A door before the bucket that can be shut: an HTTP proxy whose answers a test decides."""

from __future__ import annotations

import http.client
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Front:
    """``refuse(method, path)`` gives the status to answer with, or None to pass the request on.

    ``lose_reply(method, path)`` passes the request on and breaks the connection off.
    ``authorization``: what requests must carry, if anything; it is not passed on.
    """

    def __init__(self, upstream: str, address: str = "127.0.0.1") -> None:
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        self.lose_reply: Callable[[str, str], bool] = lambda method, path: False
        self.authorization: str | None = None
        self.requests: list[tuple[str, str]] = []
        self.received_to: dict[str, str] = {}  # last byte of each resumable upload
        self.host = urllib.parse.urlsplit(upstream).netloc
        handler = type("Handler", (_Handler,), {"front": self})
        self._server = _Server((address, 0), handler)
        self.url = f"http://{address}:{self._server.server_address[1]}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def received(self, path: str) -> dict[str, str]:
        """How far a resumable upload has come. fake-gcs-server takes the question for the end of
        the upload, and stores what it has."""
        last = self.received_to.get(path)
        return {"Range": f"bytes=0-{last}"} if last else {}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: Front

    def _pass(self) -> None:
        front = self.front
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        front.requests.append((self.command, self.path))
        if status := front.refuse(self.command, self.path):
            self._answer(status, b'{"error": {"message": "refused by the test"}}', {})
            return
        if front.authorization not in (None, self.headers.get("Authorization")):
            self._answer(401, b"not you", {})
            return
        span = self.headers.get("Content-Range", "")
        if span.startswith("bytes */"):
            self._answer(308, b"", front.received(self.path))
            return
        connection = http.client.HTTPConnection(front.host, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        reply = connection.getresponse()
        data, headers = reply.read(), dict(reply.headers)
        connection.close()
        if span:
            front.received_to[self.path] = span.partition("/")[0].rpartition("-")[2]
        if front.lose_reply(self.command, self.path):
            self.close_connection = True
            return
        self._answer(reply.status, data, headers)

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

    def log_message(self, format: str, *args: Any) -> None:
        pass
