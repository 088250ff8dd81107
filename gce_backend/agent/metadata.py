"""The instance's metadata server: who we are, the attributes, access tokens.

``GCE_METADATA_HOST`` (``host:port``, google-auth's name) points elsewhere for an emulator.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.parse
from dataclasses import dataclass

from .endpoint import Endpoint, retrying
from .errors import CloudError

DEFAULT_HOST = "metadata.google.internal"
# What Google's own guest agent sends first; without an ETag the server waits for a change.
NO_ETAG = "NONE"
_ROOT = "/computeMetadata/v1/"
_PREEMPTED = "instance/preempted"
_HEADERS = {"Metadata-Flavor": "Google"}
# A token is used until a minute before its end; the real server renews it five minutes before.
_TOKEN_MARGIN_S = 60.0
_TOKEN = "instance/service-accounts/default/token"


@dataclass(frozen=True)
class Identity:
    """This instance, as Compute Engine names it."""

    project: str
    zone: str
    name: str
    image: str = ""  # projects/P/global/images/I: of a family, the image it stood for


class MetadataServer:
    def __init__(self, host: str | None = None) -> None:
        host = host or os.environ.get("GCE_METADATA_HOST") or DEFAULT_HOST
        self._endpoint = Endpoint(f"http://{host}", timeout=10.0)
        self._lock = threading.Lock()
        self._token: tuple[str, float] | None = None

    def get(self, path: str, patience: float = 30.0) -> str | None:
        """Value at ``path`` (below ``computeMetadata/v1/``); None when there is none (404)."""

        def once() -> str | None:
            reply = self._endpoint.request("GET", _ROOT + path, headers=_HEADERS)
            if reply.status == 404:
                return None
            if reply.status != 200:
                raise CloudError(f"metadata server: {path}: HTTP {reply.status}", reply.status)
            return reply.body.decode(errors="replace")

        return retrying(once, time.time() + patience, max_delay=2.0)

    def attribute(self, name: str) -> str | None:
        return self.get(f"instance/attributes/{urllib.parse.quote(name)}")

    def wait_for_attributes(self, last_etag: str, timeout_s: int) -> tuple[dict[str, str], str]:
        """All attributes and their ETag, once they differ from ``last_etag`` or time is up.

        With ``NO_ETAG`` at once: what was set before the first question is not missed.
        """
        query = f"recursive=true&wait_for_change=true&timeout_sec={timeout_s}"
        query += f"&last_etag={urllib.parse.quote(last_etag)}"
        reply = self._endpoint.request(
            "GET", f"{_ROOT}instance/attributes/?{query}", headers=_HEADERS, timeout=timeout_s + 10
        )
        if reply.status != 200:
            raise CloudError(f"metadata server: attributes: HTTP {reply.status}", reply.status)
        return json.loads(reply.body), reply.headers.get("ETag", "")

    def preempted(self, patience: float = 1.0) -> bool:
        """Whether Compute Engine is taking this spot instance back; False when nobody answers."""
        try:
            return self.get(_PREEMPTED, patience) == "TRUE"
        except CloudError:
            return False

    def wait_for_preemption(self, last_etag: str, timeout_s: int) -> tuple[bool, str]:
        """Whether it is, and the value's ETag, once that differs from ``last_etag`` or time is up.

        CloudError with status 404 where there is no such value.
        """
        query = f"wait_for_change=true&timeout_sec={timeout_s}"
        query += f"&last_etag={urllib.parse.quote(last_etag)}"
        reply = self._endpoint.request(
            "GET", f"{_ROOT}{_PREEMPTED}?{query}", headers=_HEADERS, timeout=timeout_s + 10
        )
        if reply.status != 200:
            raise CloudError(f"metadata server: preempted: HTTP {reply.status}", reply.status)
        return reply.body.strip() == b"TRUE", reply.headers.get("ETag", "")

    def identity(self) -> Identity:
        zone = (self.get("instance/zone") or "").rpartition("/")[2]
        project = self.get("project/project-id") or ""
        name, image = self.get("instance/name") or "", self.get("instance/image") or ""
        return Identity(project, zone, name, image)

    def token(self) -> str:
        """An access token of the instance's service account; CloudError when it has none."""
        with self._lock:
            if self._token is None or self._token[1] < time.time():
                text = self.get(_TOKEN)
                if text is None:
                    raise CloudError("the instance has no service account: no access token", 404)
                try:
                    answer = json.loads(text)
                    expires = time.time() + float(answer["expires_in"]) - _TOKEN_MARGIN_S
                    self._token = (str(answer["access_token"]), expires)
                except (ValueError, LookupError, TypeError) as error:
                    raise CloudError(
                        f"metadata server: {_TOKEN}: no token: {error}", 502
                    ) from error
            return self._token[0]

    def drop_token(self) -> None:
        """After a 401: the next call fetches a new token."""
        with self._lock:
            self._token = None
