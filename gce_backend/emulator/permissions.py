"""Who may do what, as two APIs tell it: Resource Manager of a project, IAM of a service account.

Everybody may do everything, except what a fault forbids: its method is one of those here, and its
resource the permission, as in ``Fault("forbidden", PROJECTS, "compute.instances.create")``.
"""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web

from .cloud import PROJECT_NUMBER, Cloud
from .errors import ApiError

PROJECTS = "cloudresourcemanager.projects.testIamPermissions"
ACCOUNTS = "iam.serviceAccounts.testIamPermissions"
_PROJECT = re.compile(r"/v1/projects/([^/:]+):testIamPermissions")
_ACCOUNT = re.compile(r"/v1/projects/-/serviceAccounts/([^/:]+)(:testIamPermissions)?")


class Permissions:
    """The calls that ask for permissions, and the one that looks a service account up."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    async def serve(self, request: web.BaseRequest) -> web.Response | None:
        """None where the request is none of these APIs'."""
        project, account = _PROJECT.fullmatch(request.path), _ACCOUNT.fullmatch(request.path)
        if not project and not account:
            return None
        asked = json.loads(await request.content.read() or b"{}").get("permissions", [])
        try:
            if project:
                return web.json_response(self._of_project(project[1], asked))
            assert account is not None
            return web.json_response(self._of_account(account[1], account[2] is not None, asked))
        except ApiError as error:
            return web.json_response(error.body(), status=error.code)

    def _of_project(self, project: str, asked: list[str]) -> dict[str, Any]:
        if project not in (self._cloud.settings.project, PROJECT_NUMBER):
            raise ApiError(403, "forbidden", "The caller does not have permission")
        return self._granted(PROJECTS, asked)

    def _of_account(self, email: str, tests: bool, asked: list[str]) -> dict[str, Any]:
        if email != f"{PROJECT_NUMBER}-compute@developer.gserviceaccount.com":
            raise ApiError(404, "notFound", f"Unknown service account {email}")
        if tests:
            return self._granted(ACCOUNTS, asked)
        name = f"projects/{self._cloud.settings.project}/serviceAccounts/{email}"
        return {"name": name, "email": email}

    def _granted(self, method: str, asked: list[str]) -> dict[str, Any]:
        return {
            "permissions": [
                permission
                for permission in asked
                if self._cloud.faults.take_answer(method, permission) is None
            ]
        }
