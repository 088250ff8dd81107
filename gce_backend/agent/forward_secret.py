"""The tracking server's credentials, from Secret Manager, with the instance's service account.

Kept in memory only: never in a file, a message, or the trainer's environment.
``CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER`` (gcloud's name) points elsewhere for an emulator.
"""

from __future__ import annotations

import base64
import json
import os

from .endpoint import Endpoint
from .errors import CloudError, ServerAway
from .metadata import MetadataServer
from .spec import Forward

DEFAULT_URL = "https://secretmanager.googleapis.com/"
_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER"
_TIMEOUT_S = 10.0


class Credentials:
    """What requests to the server carry as ``Authorization``; None where it wants nothing."""

    def __init__(self, forward: Forward, metadata: MetadataServer) -> None:
        self._secret, self._kind, self._metadata = forward.secret, forward.secret_kind, metadata
        url = os.environ.get(_VARIABLE) or DEFAULT_URL
        self._endpoint = Endpoint(url, timeout=_TIMEOUT_S)
        self._header: str | None = None

    def header(self) -> str | None:
        """Raises ServerAway: the secret cannot be read, or is none."""
        if self._secret and self._header is None:
            self._header = _as_header(self._read(self._secret), self._kind, self._secret)
        return self._header

    def drop(self) -> None:
        """After a 401: the secret may have a newer version."""
        self._header = None

    def _read(self, name: str) -> bytes:
        try:
            token = self._metadata.token()
            self._endpoint.close()  # asked once in hours: an old connection is dead
            reply = self._endpoint.request(
                "GET", f"/v1/{name}:access", headers={"Authorization": f"Bearer {token}"}
            )
        except CloudError as error:
            raise ServerAway(f"the secret {name} cannot be read: {error}") from error
        if reply.status == 200:
            return base64.b64decode(json.loads(reply.body)["payload"]["data"])
        if reply.status == 401:
            self._metadata.drop_token()
        denied = 400 <= reply.status < 500 and reply.status not in (401, 408, 429)
        raise ServerAway(self._refused(name, reply.status, reply.body), denied=denied)

    def _refused(self, name: str, status: int, body: bytes) -> str:
        _, project, _, secret = name.split("/")[:4]
        try:
            reason = str(json.loads(body)["error"]["message"])[:300]
        except (ValueError, KeyError, TypeError):
            reason = ""
        told = f"the secret {name} cannot be read: HTTP {status} {reason}".rstrip(". ")
        if status == 404:
            return (
                f"{told}. To make it, run: "
                f"gcloud secrets create {secret} --project {project} --data-file=FILE"
            )
        if status == 403:
            return (
                f"{told}. To let this instance's service account read it, run: "
                f"gcloud secrets add-iam-policy-binding {secret} --project {project} "
                f"--member serviceAccount:{self._account()} "
                "--role roles/secretmanager.secretAccessor"
            )
        return told

    def _account(self) -> str:
        try:
            email = self._metadata.get("instance/service-accounts/default/email", patience=2.0)
        except CloudError:
            email = None
        return (email or "EMAIL").strip()


def _as_header(secret: bytes, kind: str, name: str) -> str:
    text = secret.strip()
    # What a header cannot hold would stand in the error that http.client raises.
    if not text or not text.isascii() or not text.decode("ascii").isprintable():
        raise ServerAway(f"the secret {name} does not hold one line of ASCII text", denied=True)
    if kind != "login":
        return f"Bearer {text.decode('ascii')}"
    if b":" not in text:
        raise ServerAway(f"the secret {name} does not hold user:password", denied=True)
    return f"Basic {base64.b64encode(text).decode('ascii')}"
