"""OS Login v1 over HTTP: what gcloud asks on its way to an instance with ``enable-oslogin``.

Beside the API of Compute Engine, on its port: the profile, the import of a key, and what
``gcloud compute os-login ssh-keys`` does with keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from .cloud import Cloud
from .errors import ApiError, invalid, not_emulated, not_found
from .life import Life
from .os_login import Account, Key
from .tokens import check_scope

PREFIX = "/v1/users/"

_KEY = r"([^/:]+)/sshPublicKeys/(\w+)"
_METHODS = (
    ("oslogin.users.getLoginProfile", "GET", re.compile(r"([^/:]+)/loginProfile()")),
    ("oslogin.users.importSshPublicKey", "POST", re.compile(r"([^/:]+):importSshPublicKey()")),
    ("oslogin.users.sshPublicKeys.get", "GET", re.compile(_KEY)),
    ("oslogin.users.sshPublicKeys.patch", "PATCH", re.compile(_KEY)),
    ("oslogin.users.sshPublicKeys.delete", "DELETE", re.compile(_KEY)),
)


class OsLoginCalls:
    """Serves the users of one cloud."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    async def serve(self, request: web.BaseRequest, caller: Life | None) -> web.Response:
        """A request whose path begins with ``PREFIX``; recorded like any other."""
        name, email, fingerprint = _find(request)
        place = self._cloud.begin_http("oslogin", name, request, caller)
        try:
            if not name:
                raise not_emulated(f"oslogin: {request.method} {request.path}")
            token = self._cloud.tokens.authenticate(
                request.headers.get("Authorization"), by_instance=caller is not None
            )
            check_scope(token, "oslogin", writes=request.method != "GET")
            body = _key_fields(await request.content.read())
            answer = self._answer(name, self._cloud.os_login.account(email), fingerprint, body)
        except ApiError as error:
            self._cloud.end(place, status=error.code)
            return web.json_response(error.body(), status=error.code)
        self._cloud.end(place, status=200, answer=answer)
        return web.json_response(answer)

    def _answer(
        self, name: str, account: Account, fingerprint: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        match name.rpartition(".")[2]:
            case "getLoginProfile":
                return account.resource(self._cloud.settings.project)
            case "importSshPublicKey":
                if text := body.get("key"):
                    if len(text.split()) < 2:
                        raise invalid("Invalid value for field 'key': it is no SSH public key.")
                    key = Key(text.strip(), _expiry(body))
                    account.keys[key.fingerprint] = key
                account.is_posix = True
                return {"loginProfile": account.resource(self._cloud.settings.project)}
        if fingerprint not in account.keys:
            raise not_found(f"users/{account.email}/sshPublicKeys/{fingerprint}")
        key = account.keys[fingerprint]
        match name.rpartition(".")[2]:
            case "delete":
                del account.keys[fingerprint]
                return {}
            case "patch":
                key = account.keys[fingerprint] = Key(key.text, _expiry(body))
        return key.resource(account.email)


def _find(request: web.BaseRequest) -> tuple[str, str, str]:
    """(method, account, fingerprint); of an unknown method, a name by which nothing is served."""
    path = request.path.removeprefix(PREFIX)
    for name, verb, form in _METHODS:
        if verb == request.method and (match := form.fullmatch(path)):
            return name, match[1], match[2]
    return "", "", ""


def _key_fields(body: bytes) -> dict[str, Any]:
    """The API's SshPublicKey, of which two fields can be given."""
    try:
        parsed = json.loads(body) if body else {}
    except ValueError as error:
        raise invalid("Parse Error: the body is no JSON object.") from error
    if not isinstance(parsed, dict) or not all(isinstance(v, str) for v in parsed.values()):
        raise invalid("The body is no SshPublicKey.")
    for unknown in set(parsed) - {"key", "expirationTimeUsec", "name", "fingerprint"}:
        raise invalid(
            f'Invalid JSON payload received. Unknown name "{unknown}": Cannot find field.'
        )
    return parsed


def _expiry(body: Mapping[str, Any]) -> int | None:
    text = body.get("expirationTimeUsec", "")
    if text and not text.isdigit():
        raise invalid(f"Invalid value for field 'expirationTimeUsec': '{text}'.")
    return int(text) if text else None
