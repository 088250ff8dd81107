"""Secret Manager as an instance needs it: the one call that reads a secret's version.

Secrets are given to the emulator as data; a second value under one name is a new version.
"""

from __future__ import annotations

import base64
import re

import google_crc32c
from aiohttp import web

from . import strikes
from .cloud import PROJECT_NUMBER, Cloud
from .errors import ApiError
from .faults import FaultKind
from .life import Life
from .tokens import check_scope

ACCESS = (
    "secretmanager.versions.access"  # what a fault calls it, and its resource the secret's name
)
_PATH = re.compile(r"/v1/projects/([^/]+)/secrets/([\w-]+)/versions/(latest|\d+):access")


class SecretManager:
    """The secrets of the project; their values stand in no record of calls."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._versions: dict[str, list[str]] = {}

    def put(self, name: str, value: str) -> None:
        """Add a version."""
        self._versions.setdefault(name, []).append(value)

    async def serve(self, request: web.BaseRequest, caller: Life | None) -> web.Response | None:
        """None where the request is none of Secret Manager's. Raises ReplyLost."""
        match = _PATH.fullmatch(request.path)
        if match is None or request.method != "GET":
            return None
        place = self._cloud.begin_http("secretmanager", ACCESS, request, caller)
        try:
            token = self._cloud.tokens.authenticate(
                request.headers.get("Authorization"), by_instance=caller is not None
            )
            check_scope(token, "secretmanager", writes=False)
            answer = web.json_response(await self._access(*match.groups()))
        except ApiError as error:
            answer = web.json_response(error.body(), status=error.code)
        self._cloud.end(place, status=answer.status)
        return answer

    async def _access(self, project: str, secret: str, version: str) -> dict[str, object]:
        fault = self._cloud.faults.take_answer(ACCESS, secret)
        if fault is not None and fault.kind is FaultKind.FORBIDDEN:
            raise ApiError(
                403,
                "forbidden",
                f"Permission '{ACCESS}' denied for resource "
                f"'projects/{project}/secrets/{secret}/versions/{version}' (or it may not exist).",
                status="PERMISSION_DENIED",
            )
        await strikes.before(fault, self._cloud.clock)
        name = f"projects/{PROJECT_NUMBER}/secrets/{secret}"
        versions = self._versions.get(secret, [])
        number = len(versions) if version == "latest" else int(version)
        known = project in (self._cloud.settings.project, PROJECT_NUMBER)
        if not known or not 1 <= number <= len(versions):
            raise ApiError(
                404,
                "notFound",
                f"Secret [{name}] not found or has no versions.",
                status="NOT_FOUND",
            )
        data = versions[number - 1].encode()
        strikes.after(fault)
        return {
            "name": f"{name}/versions/{number}",
            "payload": {
                "data": base64.b64encode(data).decode(),
                "dataCrc32c": str(google_crc32c.value(data)),
            },
        }
