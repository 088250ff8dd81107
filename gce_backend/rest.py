"""Google's REST APIs by plain HTTP, for commands that must answer at once.

``google-cloud-compute`` takes 1.5 to 2 s to import, longer than ``mlflow-gce ps`` may take in all;
google-auth's session takes a tenth of that. Errors are those of ``compute.py``.
"""

from __future__ import annotations

import contextlib
from typing import Any

from gce_backend.compute_errors import is_transient, translated
from gce_backend.credentials import default_credentials
from gce_backend.polling import retry

COMPUTE_URL = "https://compute.googleapis.com/compute/v1/"
_CALL_SECONDS = 30.0
_RETRY_SECONDS = 60.0
_CONNECTIONS = 16


class Rest:
    """JSON over HTTP, with the caller's credentials; none where an emulator is asked.

    Args:
        base: what paths are relative to; ends in a slash.
        anonymous: send no token.
        retry_seconds: how long one call is repeated while the service does not answer.
    """

    def __init__(
        self, base: str, *, anonymous: bool, retry_seconds: float = _RETRY_SECONDS
    ) -> None:
        self._base = base
        self._retry_seconds = retry_seconds
        self._session = open_session(anonymous=anonymous)

    def get(self, what: str, path: str, **query: Any) -> dict[str, Any]:
        """The JSON at ``path``; ``what`` begins an error's message.

        Raises:
            ComputeError, InstanceNotFound, PermissionDenied, …: as ``compute_errors`` translates.
        """
        return self.call(what, "GET", path, query=query)

    def call(
        self,
        what: str,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Any = None,
    ) -> dict[str, Any]:
        """Any method, repeated while the error is one that passes."""

        def once() -> dict[str, Any]:
            response = self._session.request(
                method, self._base + path, params=query, json=body, timeout=_CALL_SECONDS
            )
            if not response.ok:
                raise _error(response)
            answer: dict[str, Any] = response.json() if response.content else {}
            return answer

        with translated(what):
            return retry(once, is_transient=is_transient, seconds=self._retry_seconds)


def _error(response: Any) -> Exception:
    """google-api-core's exception for a response, with the server's own sentence alone."""
    from google.api_core.exceptions import from_http_response

    error: Exception = from_http_response(response)  # type: ignore[no-untyped-call]
    with contextlib.suppress(ValueError, LookupError, TypeError):
        error.message = response.json()["error"]["message"]  # type: ignore[attr-defined]
    return error


def open_session(*, anonymous: bool) -> Any:
    """A `requests` session that sends the caller's token, or none; for several threads.

    Raises:
        PermissionDenied: there are no credentials.
    """
    import requests.adapters

    if anonymous:
        session = requests.Session()
    else:
        from google.auth.transport.requests import AuthorizedSession

        session = AuthorizedSession(default_credentials())  # type: ignore[no-untyped-call]
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def compute_rest(endpoint: str | None, **options: Any) -> Rest:
    """Compute Engine v1: Google's, or the emulator's whose URL ends in ``/compute/v1/``."""
    if endpoint is None:
        return Rest(COMPUTE_URL, anonymous=False, **options)
    return Rest(endpoint.rstrip("/") + "/", anonymous=True, **options)
