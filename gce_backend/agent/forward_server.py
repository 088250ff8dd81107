"""The tracking server as the journal of one run meets it: reached quickly, judged fairly.

A write that fails is either the server's trouble (ServerAway: tried again later) or the write's
own (Refused: it will never be accepted). The status of the reply alone does not tell them apart -
MLflow answers 400 for a lost database connection and 500 for a value that a column cannot hold -
so a small write that is known to be good decides.
"""

from __future__ import annotations

import json
import math
import time
import urllib.parse
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from .endpoint import Endpoint
from .entities import Json
from .errors import CloudError, ServerAway
from .forward_secret import Credentials
from .records import Refused

T = TypeVar("T")

_PROBE_TAG = "gce.journal.probe"
_ROOT = "/api/2.0/mlflow/"
_TIMEOUT_S = 10.0
# Servers close an idle connection after two seconds and more; a new one costs less than the doubt.
_IDLE_S = 1.0

_TRANSIENT = (408, 429, 502, 503, 504)
# How often a write may fail, each time with a good write succeeding after it, before it is refused.
_TRIES_CLIENT_ERROR = 2
_TRIES_SERVER_ERROR = 3


class Rejected(Exception):
    """The server answered with an error; what it means is decided in ``write`` and ``read``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server:
    """One run on one server. From one thread at a time."""

    def __init__(self, uri: str, run_id: str, credentials: Credentials) -> None:
        self.run_id = run_id
        self.until = math.inf  # unix seconds after which nothing more is begun
        self.written_at = 0.0  # when the server last took something
        self._endpoint = Endpoint(uri, timeout=_TIMEOUT_S)
        self._credentials = credentials
        self._used_at = 0.0

    def send(self, method: str, path: str, body: Json) -> Json:
        """One request, not repeated. Raises Rejected, or ServerAway without a proper answer."""
        if time.time() > self.until:
            raise ServerAway("the time for it is over")
        headers = {"Content-Type": "application/json"}
        if credentials := self._credentials.header():
            headers["Authorization"] = credentials
        target = _ROOT + urllib.parse.quote(path)
        data = None
        if method == "GET":
            target += "?" + urllib.parse.urlencode(body)
        else:
            data = json.dumps(body).encode()
        if time.time() - self._used_at > _IDLE_S:
            self._endpoint.close()
        try:
            reply = self._endpoint.request(method, target, headers=headers, body=data)
        except CloudError as error:
            raise ServerAway(str(error)) from error
        self._used_at = time.time()
        return self._judge(method, path, reply.status, reply.body)

    def _judge(self, method: str, path: str, status: int, body: bytes) -> Json:
        what = f"{method} {self._endpoint.base_url}{_ROOT}{path}"
        if status == 200:
            try:
                answer = dict(json.loads(body))
            except (ValueError, TypeError):
                raise ServerAway(f"{what}: this is not MLflow's answer") from None
            if method != "GET":
                self.written_at = self._used_at
            return answer
        message = f"{what}: HTTP {status} {_message(body)}".rstrip(". ")
        if status == 401:
            self._credentials.drop()
            raise ServerAway(message, denied=True)
        if status in _TRANSIENT:
            raise ServerAway(message)
        raise Rejected(status, message)

    def write(self, call: Callable[[], T]) -> T:
        """``call``, which sends something. Raises Refused, or ServerAway."""
        failures = 0
        while True:
            try:
                return call()
            except Rejected as error:
                failures += 1
                self._prove_writable()
                is_client_error = 400 <= error.status < 500
                if failures >= (_TRIES_CLIENT_ERROR if is_client_error else _TRIES_SERVER_ERROR):
                    raise Refused(str(error)) from error

    def read(self, call: Callable[[], T]) -> T:
        """``call``, which cannot be at fault itself. Raises ServerAway."""
        try:
            return call()
        except Rejected as error:
            raise ServerAway(str(error), denied=error.status in (403, 404)) from error

    def run(self) -> Json:
        """The run itself, which must be there and not deleted. Raises ServerAway."""
        answer = self.read(lambda: self.send("GET", "runs/get", {"run_id": self.run_id}))
        run: Json = answer["run"]
        if run["info"].get("lifecycle_stage", "active") != "active":
            raise ServerAway(f"run {self.run_id} is deleted and takes no data", denied=True)
        return run

    def _prove_writable(self) -> None:
        """A new value every time: the SQL store sends no write for a value that it has."""
        self.run()
        tag = {"run_id": self.run_id, "key": _PROBE_TAG}
        value = uuid.uuid4().hex
        self.read(lambda: self.send("POST", "runs/set-tag", {**tag, "value": value}))
        self.read(lambda: self.send("POST", "runs/delete-tag", tag))


def tags_of(run: Json) -> dict[str, str]:
    """The tags of a run as ``runs/get`` shows it."""
    return {tag["key"]: tag.get("value", "") for tag in run.get("data", {}).get("tags") or ()}


def _message(body: bytes) -> str:
    try:
        text: Any = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace")
    return " ".join(str(text).split())[:300]
