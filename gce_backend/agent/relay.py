"""The tracking server that the trainer sees: HTTP on loopback, for this run's processes only.

Plain HTTP/1.1 with keep-alive, so that any MLflow client works, in Python, R or Java. Answers
go out in one packet with Nagle off: a write takes about a millisecond.
"""

from __future__ import annotations

import hmac
import json
import math
import socket
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

from .artifact_api import ArtifactApi
from .entities import Json
from .errors import RelayError, invalid, not_implemented
from .files import CHUNK_BYTES
from .locations import Locations
from .request_body import RequestBody
from .tracking_api import TrackingApi

# What the relay speaks; clients ask before they use newer calls.
MLFLOW_VERSION = "3.13.0"
HOST = "127.0.0.1"
_TRACKING = ("/api/2.0/mlflow/", "/api/3.0/mlflow/", "/ajax-api/2.0/mlflow/")
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_MAX_JSON_BYTES = 64 * 1024 * 1024
_BIND_PATIENCE_S = 30.0
_STOP_PATIENCE_S = 10.0


class Relay:
    """Args:
    port: 0 for any; a restarted agent takes the one that the running trainer knows.
    token: what requests must carry as ``Authorization: Bearer``.
    """

    def __init__(
        self,
        tracking: TrackingApi,
        artifacts: ArtifactApi,
        locations: Locations,
        token: str,
        port: int = 0,
    ) -> None:
        self._busy = _Busy()
        handler = type(
            "Handler",
            (_Handler,),
            {
                "tracking": tracking,
                "artifacts": artifacts,
                "locations": locations,
                "token": token,
                "busy": self._busy,
            },
        )
        self._server = _bind(handler, port)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            daemon=True,
            name="relay",
        )

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer nothing more: what is acknowledged from now on would be collected by nobody."""
        self._busy.close(_STOP_PATIENCE_S)
        self._server.shutdown()
        self._server.server_close()


class _Busy:
    """How many requests are being answered; none any more once it is closed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._closed = False

    def enter(self) -> bool:
        with self._changed:
            if not self._closed:
                self._count += 1
            return not self._closed

    def leave(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def close(self, patience: float) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._count == 0, patience)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _bind(handler: type[BaseHTTPRequestHandler], port: int) -> _Server:
    until = time.time() + _BIND_PATIENCE_S
    while True:
        try:
            return _Server((HOST, port), handler)
        except OSError:
            if port == 0 or time.time() > until:
                raise
            time.sleep(0.2)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 600  # seconds a kept-alive connection may be idle

    tracking: TrackingApi
    artifacts: ArtifactApi
    locations: Locations
    token: str
    busy: _Busy

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the run's log is the trainer's."""

    def _serve(self) -> None:
        if not self.busy.enter():
            self.close_connection = True
            return
        try:
            self._answer()
        finally:
            self.busy.leave()

    def _answer(self) -> None:
        self._body = RequestBody(self)
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        try:
            if path == "/health":
                self._reply(200, b"OK", "text/plain")
            elif path == "/version":
                self._reply(200, MLFLOW_VERSION.encode(), "text/plain")
            else:
                self._authorize()
                self._route(path, urllib.parse.parse_qs(parts.query, keep_blank_values=True))
        except RelayError as error:
            self._reply_error(error)
        except (ConnectionError, TimeoutError, socket.timeout):
            self.close_connection = True
        except OSError as error:  # a full disk: nothing was acknowledged
            self._reply_error(
                RelayError(
                    "INSUFFICIENT_STORAGE",
                    f"the instance's disk: {error}. Nothing of this was kept; machine.disk_gb "
                    "makes the disk larger.",
                )
            )
        except Exception as error:
            self._reply_error(
                RelayError("INTERNAL_ERROR", f"relay: {type(error).__name__}: {error}")
            )

    def _authorize(self) -> None:
        scheme, _, given = (self.headers.get("Authorization") or "").partition(" ")
        if not given:
            raise RelayError(
                "UNAUTHENTICATED", "the relay wants MLFLOW_TRACKING_TOKEN as bearer token"
            )
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.encode(), self.token.encode()
        ):
            raise RelayError("PERMISSION_DENIED", "this token is not the one of this run's relay")

    def _route(self, path: str, query: dict[str, list[str]]) -> None:
        if path == _ARTIFACTS or path.startswith(_ARTIFACTS + "/"):
            self._artifact(path[len(_ARTIFACTS) :].strip("/"), query)
            return
        if path == "/api/3.0/mlflow/server-info":
            self._reply_json({"store_type": "SqlStore", "multipart_uploads_enabled": False})
            return
        for root in _TRACKING:
            if path.startswith(root):
                self._track(path[len(root) :].strip("/"), query)
                return
        raise not_implemented(self.command, path.strip("/"))

    def _track(self, path: str, query: dict[str, list[str]]) -> None:
        raw = self._body.read_all(_MAX_JSON_BYTES)
        body: Json = {
            key: values[0] if len(values) == 1 else values for key, values in query.items()
        }
        if raw.strip():
            try:
                body.update(_parse(self.locations.for_store(raw)))
            except (ValueError, TypeError) as error:
                raise invalid(
                    f"{path}: the request's body is not a JSON object: {error}"
                ) from error
        if (self.command, path) == ("GET", "artifacts/list"):
            self._list_run_artifacts(body)
        else:
            self._reply_json(self.tracking.answer(self.command, path, body))

    def _list_run_artifacts(self, body: Json) -> None:
        run_id = body.get("run_id") or body.get("run_uuid")
        uri = str(self.tracking.lookup(lambda state: state.run(run_id).info["artifact_uri"]))
        below = str(body.get("path") or "").strip("/")
        path = uri.removeprefix("gs://") + (f"/{below}" if below else "")
        files = self.artifacts.listing(path)["files"]
        for item in files:
            item["path"] = f"{below}/{item['path']}".strip("/")
        self._reply_json({"root_uri": self.locations.for_trainer(uri), "files": files})

    def _artifact(self, path: str, query: dict[str, list[str]]) -> None:
        if self.command == "PUT":
            try:
                self.artifacts.upload(path, self._body.read, self._body.length)
            except RelayError:
                # A client that is still sending would see a broken connection, and try again.
                self._body.discard(math.inf)
                raise
            self._reply_json({})
        elif self.command == "DELETE":
            self.artifacts.delete(path)
            self._reply_json({})
        elif self.command == "GET" and path:
            self._download(path)
        elif self.command == "GET":
            self._reply_json(self.artifacts.listing(query.get("path", [""])[0]))
        else:
            raise not_implemented(self.command, f"mlflow-artifacts/{path}")

    def _download(self, path: str) -> None:
        source, size = self.artifacts.download(path)
        with source:
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            if size is None:
                self.close_connection = True
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(size))
            self.end_headers()
            if not self._copy(source, size):
                self.close_connection = True  # the one way left to tell the client

    def _copy(self, source: IO[bytes], size: int | None) -> bool:
        """False when it broke off, on either side. An error's answer would be read as the file."""
        sent = 0
        try:
            while chunk := source.read(CHUNK_BYTES):
                self.wfile.write(chunk)
                sent += len(chunk)
        except Exception:
            return False
        return size in (None, sent)

    def _reply_json(self, value: Json) -> None:
        self._reply(200, json.dumps(value).encode(), "application/json")

    def _reply_error(self, error: RelayError) -> None:
        answer = {"error_code": error.code, "message": error.message}
        self._reply(error.status, json.dumps(answer).encode(), "application/json")

    def _reply(self, status: int, data: bytes, content_type: str) -> None:
        """One write for the whole answer. A body that was not read ends the connection."""
        if not self._body.discard():
            self.close_connection = True
        head = (
            f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(data)}\r\n"
            + ("Connection: close\r\n" if self.close_connection else "")
            + "\r\n"
        )
        self.wfile.write(head.encode() + data)


def _parse(raw: bytes) -> Any:
    """JSON whose strings are text. Escaped or not, it may hold half of a surrogate pair, which
    Python takes and which nothing that stores or sends UTF-8 does: UnicodeEncodeError."""
    value = json.loads(raw)
    if b"\\u" in raw or b"\xed" in raw:  # surrogates in UTF-8 begin with it
        json.dumps(value, ensure_ascii=False).encode()
    return value
