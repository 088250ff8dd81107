"""Access tokens of instances: who holds one, and what its scopes allow."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from .clock import Clock
from .errors import insufficient_scopes, unauthenticated

_AUTH = "https://www.googleapis.com/auth/"
CLOUD_PLATFORM = _AUTH + "cloud-platform"
LIFETIME_SECONDS = 3599  # what the real metadata server answers for a fresh token
_RENEWAL_SECONDS = 300  # so long before its end an instance gets a new one, as it really does

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
    """An instance's own.

    Attributes:
        instance: its name, for the record of calls; another zone may have one of the same name.
        expires: unix seconds by the emulator's clock.
    """

    value: str
    instance_id: str
    instance: str
    scopes: frozenset[str]
    expires: float


class Tokens:
    """All tokens given out; expired ones and those of a deleted instance are forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_value: dict[str, Token] = {}
        self._newest: dict[str, Token] = {}  # by instance id

    def issue(self, instance_id: str, instance: str, scopes: frozenset[str]) -> Token:
        """The instance's token: the same one until shortly before its end."""
        token = self._newest.get(instance_id)
        if token is None or self.seconds_left(token) < _RENEWAL_SECONDS:
            self._keep(lambda known: self.seconds_left(known) > 0)
            value = f"ya29.emulator-{secrets.token_urlsafe(24)}"
            end = self._clock.now() + LIFETIME_SECONDS
            token = Token(value, instance_id, instance, scopes, end)
            self._by_value[value] = self._newest[instance_id] = token
        return token

    def seconds_left(self, token: Token) -> float:
        return token.expires - self._clock.now()

    def forget(self, instance_id: str) -> None:
        self._newest.pop(instance_id, None)
        self._keep(lambda known: known.instance_id != instance_id)

    def _keep(self, wanted: Callable[[Token], bool]) -> None:
        self._by_value = {v: token for v, token in self._by_value.items() if wanted(token)}

    def authenticate(self, authorization: str | None, *, by_instance: bool = False) -> Token | None:
        """The token of an ``Authorization`` header; None when there is no header.

        No header passes as the user: with ``STORAGE_EMULATOR_HOST`` set, google-cloud-storage
        sends none, on an instance too, and so does gcloud with disabled credentials.

        Args:
            by_instance: an instance calls, and a service that is always sent a token.

        Raises:
            ApiError: 401, the token is none of ours, or has expired, or has to be there.
        """
        if authorization is None:
            if by_instance:
                raise unauthenticated()
            return None
        scheme, _, value = authorization.partition(" ")
        token = self._by_value.get(value.strip())
        if scheme.lower() != "bearer" or token is None or self.seconds_left(token) <= 0:
            raise unauthenticated()
        return token


def check_scope(token: Token | None, service: str, *, writes: bool) -> None:
    """Raises ApiError 403 when the token's scopes do not cover the call."""
    if token is None:
        return
    if not token.scopes & _ALLOWING[service][1 if writes else 0]:
        raise insufficient_scopes(service)
