"""Access tokens of instances: who holds one, and what its scopes allow."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from .errors import insufficient_scopes, unauthenticated

_AUTH = "https://www.googleapis.com/auth/"
CLOUD_PLATFORM = _AUTH + "cloud-platform"
LIFETIME_SECONDS = 3599  # what the real metadata server answers for a fresh token

# service -> scopes that allow (reading, writing); from the discovery documents of the services.
_ALLOWING: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "compute": (
        frozenset({CLOUD_PLATFORM, _AUTH + "compute", _AUTH + "compute.readonly"}),
        frozenset({CLOUD_PLATFORM, _AUTH + "compute"}),
    ),
    "storage": (
        frozenset(
            {
                CLOUD_PLATFORM,
                _AUTH + "cloud-platform.read-only",
                _AUTH + "devstorage.read_only",
                _AUTH + "devstorage.read_write",
                _AUTH + "devstorage.full_control",
            }
        ),
        frozenset(
            {
                CLOUD_PLATFORM,
                _AUTH + "devstorage.read_write",
                _AUTH + "devstorage.full_control",
            }
        ),
    ),
    "oslogin": (
        frozenset({CLOUD_PLATFORM, _AUTH + "compute", _AUTH + "compute.readonly"}),
        frozenset({CLOUD_PLATFORM, _AUTH + "compute"}),
    ),
    "secretmanager": (frozenset({CLOUD_PLATFORM}), frozenset({CLOUD_PLATFORM})),
}


@dataclass(frozen=True)
class Token:
    """``instance`` is empty for the user's own token, which may do everything."""

    value: str
    instance: str
    scopes: frozenset[str]


class Tokens:
    """All tokens given out; a deleted instance's are forgotten."""

    def __init__(self) -> None:
        self._by_value: dict[str, Token] = {}

    def issue(self, instance: str, scopes: frozenset[str]) -> Token:
        token = Token(f"ya29.emulator-{secrets.token_urlsafe(24)}", instance, scopes)
        self._by_value[token.value] = token
        return token

    def forget(self, instance: str) -> None:
        for value in [v for v, token in self._by_value.items() if token.instance == instance]:
            del self._by_value[value]

    def authenticate(self, authorization: str | None) -> Token | None:
        """The token of an ``Authorization`` header; None when there is no header.

        No header passes as the user: with ``STORAGE_EMULATOR_HOST`` set, google-cloud-storage
        sends none, and so does gcloud with disabled credentials.

        Raises:
            ApiError: 401, the token is none of ours.
        """
        if authorization is None:
            return None
        scheme, _, value = authorization.partition(" ")
        token = self._by_value.get(value.strip())
        if scheme.lower() != "bearer" or token is None:
            raise unauthenticated()
        return token


def check_scope(token: Token | None, service: str, *, writes: bool) -> None:
    """Raises ApiError 403 when the token's scopes do not cover the call."""
    if token is None or not token.instance:
        return
    if not token.scopes & _ALLOWING[service][1 if writes else 0]:
        raise insufficient_scopes(service)
