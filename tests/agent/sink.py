"""A bucket for large uploads: it checks and counts their bytes, and keeps small objects alone.

fake-gcs-server copies what it has with every chunk, which takes minutes from some hundred MB on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEPT_BYTES = 1024**2


@dataclass
class Upload:
    name: str
    digest: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))
    size: int = 0
    data: bytes = b""

    def take(self, data: bytes) -> None:
        self.digest.update(data)
        self.size += len(data)
        self.data = (self.data + data)[: KEPT_BYTES + 1]

    def json(self) -> dict[str, Any]:
        md5 = base64.b64encode(self.digest.digest()).decode()
        return {"name": self.name, "size": str(self.size), "md5Hash": md5, "generation": "1"}


class Sink:
    """``lose(upload)`` may break the connection off after a chunk was taken."""

    def __init__(self) -> None:
        self.objects: dict[str, Upload] = {}
        self.sessions: list[Upload] = []
        self.chunks = 0
        self.lose = lambda upload: False
        sink = self

        class Handler(_Handler):
            pass

        Handler.sink = sink
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sink: Sink

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        name = urllib.parse.unquote(parts.path.partition("/o/")[2])
        if not name:
            self._list(query)
        elif name not in self.sink.objects:
            self._answer(404, {})
        elif query.get("alt") == "media":
            self._answer(200, self.sink.objects[name].data)
        else:
            self._answer(200, self.sink.objects[name].json())

    def do_POST(self) -> None:
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = query.get("uploadType")
        if kind == "resumable":
            self.sink.sessions.append(Upload(json.loads(body)["name"]))
            where = f"{self.sink.url}/upload/session?id={len(self.sink.sessions) - 1}"
            self._answer(200, {}, Location=where)
        elif kind == "media":
            self._keep(Upload(query["name"]), body)
        elif kind == "multipart":
            mark = b"--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
            _, head, rest = body.split(mark, 2)
            data = rest.partition(b"\r\n\r\n")[2].rpartition(b"\r\n" + mark)[0]
            self._keep(Upload(json.loads(head.partition(b"\r\n\r\n")[2])["name"]), data)
        else:
            self._answer(200, {})  # a bucket is made

    def do_PUT(self) -> None:
        upload = self.sink.sessions[int(self.path.partition("id=")[2])]
        span, _, total = self.headers["Content-Range"].removeprefix("bytes ").partition("/")
        left = int(self.headers["Content-Length"])
        if span != "*":
            assert int(span.partition("-")[0]) == upload.size, "no byte twice, and none left out"
            self.sink.chunks += 1
        while left:
            data = self.rfile.read(min(left, KEPT_BYTES))
            upload.take(data)
            left -= len(data)
        if span != "*" and self.sink.lose(upload):
            self.close_connection = True
        elif upload.size == int(total):
            self.sink.objects[upload.name] = upload
            self._answer(200, upload.json())
        else:
            self._answer(308, {}, Range=f"bytes=0-{upload.size - 1}")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _keep(self, upload: Upload, data: bytes) -> None:
        upload.take(data)
        self.sink.objects[upload.name] = upload
        self._answer(200, upload.json())

    def _list(self, query: dict[str, str]) -> None:
        prefix, cut = query.get("prefix", ""), query.get("delimiter")
        names = [name for name in sorted(self.sink.objects) if name.startswith(prefix)]
        if cut:
            names = [name for name in names if cut not in name[len(prefix) :]]
        self._answer(200, {"items": [self.sink.objects[name].json() for name in names]})

    def _answer(self, status: int, body: dict[str, Any] | bytes, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
