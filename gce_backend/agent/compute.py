"""Compute Engine as the instance needs it: may I delete myself, and do it.

``CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE`` (gcloud's name, ends in ``/compute/v1/``) points
elsewhere for an emulator.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable

from .endpoint import Endpoint, Reply, retrying
from .errors import CloudError
from .metadata import Identity, MetadataServer

DEFAULT_URL = "https://compute.googleapis.com/compute/v1/"
PERMISSION = "compute.instances.delete"
_LOOK_S = 2.0
_AGAIN_S = 60.0  # longer than an instance takes from the accepted deletion to its shutdown


class Instance:
    """This instance, seen through the API with its own service account."""

    def __init__(
        self, metadata: MetadataServer, identity: Identity, url: str | None = None
    ) -> None:
        url = url or os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE") or DEFAULT_URL
        self._endpoint = Endpoint(url, timeout=30.0)
        self._metadata = metadata
        self._path = f"/projects/{identity.project}/zones/{identity.zone}/instances/{identity.name}"

    def may_delete_itself(self, patience: float) -> bool:
        """Asks Compute Engine. False when the service account may not, or nobody answers."""
        body = json.dumps({"permissions": [PERMISSION]}).encode()

        def once() -> bool:
            reply = self._call("POST", f"{self._path}/testIamPermissions", body)
            return PERMISSION in json.loads(reply.body).get("permissions", [])

        try:
            return retrying(once, time.time() + patience)
        except (CloudError, ValueError):
            return False

    def delete_itself(self, until: float) -> None:
        """Ask for the deletion; returns once it was accepted (or the instance is gone).

        Raises CloudError when it is refused, or when nobody answers until ``until``.
        """

        def once() -> None:
            try:
                self._call("DELETE", self._path)
            except CloudError as error:
                if error.status != 404:
                    raise

        retrying(once, until)

    def stay_until_gone(self, until: float, again_after: float = _AGAIN_S) -> None:
        """Wait for the end after :meth:`delete_itself`: an accepted deletion can fail in its
        operation, so that it is asked for again every ``again_after`` seconds.

        Returns when Compute Engine knows no such instance any more, or at ``until`` (unix seconds).
        """
        asked = time.monotonic()
        while time.time() < until and not self._is_gone():
            time.sleep(min(_LOOK_S, again_after))
            if time.monotonic() - asked >= again_after:
                asked = time.monotonic()
                with contextlib.suppress(CloudError):
                    self.delete_itself(min(until, time.time() + again_after))

    def _is_gone(self) -> bool:
        try:
            self._call("GET", self._path)
        except CloudError as error:
            return error.status == 404
        return False

    def _call(self, method: str, path: str, body: bytes | None = None) -> Reply:
        headers = {"Authorization": f"Bearer {self._metadata.token()}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        reply = self._endpoint.request(method, path, headers=headers, body=body)
        if reply.status == 401:
            self._metadata.drop_token()
        if reply.status not in (200, 204):
            text = reply.body[:300].decode(errors="replace")
            raise CloudError(f"{method} {path}: HTTP {reply.status} {text}", reply.status)
        return reply


def power_off(say: Callable[[str], None]) -> None:
    """Stop the machine: its disk still costs, its processor does not."""
    command = shutil.which("poweroff")
    if command is None:
        say("the image has no poweroff: the instance runs on until its deadline")
        return
    done = subprocess.run([command], capture_output=True, text=True)
    if done.returncode:
        say(f"poweroff: exit code {done.returncode} {done.stderr.strip()}")
