"""The errors of the emulated API, in its own JSON and with its own reasons."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

log = logging.getLogger(__name__)


class ApiError(Exception):
    """An answer other than 2xx.

    Args:
        code: HTTP status.
        reason: the API's word in ``error.errors[0].reason``.
        status: canonical name that newer services add, for example ``UNAUTHENTICATED``.
        details: ``error.details``, where the real service sends them.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        domain: str = "global",
        status: str | None = None,
        details: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.domain = domain
        self.status = status
        self.details = details

    def body(self) -> dict[str, Any]:
        first = {"message": self.message, "domain": self.domain, "reason": self.reason}
        error: dict[str, Any] = {"code": self.code, "message": self.message, "errors": [first]}
        if self.status:
            error["status"] = self.status
        if self.details:
            error["details"] = self.details
        return {"error": error}

    def in_operation(self) -> dict[str, Any]:
        """The same as an operation tells it: ``error`` and its companions."""
        code = re.sub("(?=[A-Z])", "_", self.reason).upper()
        return {
            "error": {"errors": [{"code": code, "message": self.message}]},
            "httpErrorStatusCode": self.code,
            "httpErrorMessage": HTTPStatus(self.code).phrase.upper(),
        }


def unexpected(error: Exception) -> ApiError:
    """The answer to what nobody foresaw: 400 for a value that could not be read, else 500."""
    if isinstance(error, ValueError):
        return invalid(f"Invalid value: {error}")
    log.error("a request could not be answered", exc_info=error)
    return ApiError(500, "backendError", f"Internal error: {type(error).__name__}.")


class ReplyLost(Exception):
    """The connection is to be cut without an answer."""


def invalid(message: str) -> ApiError:
    return ApiError(400, "invalid", message)


def invalid_field(field: str, value: object, why: str) -> ApiError:
    """The wording Compute Engine uses for a value it does not take."""
    return invalid(f"Invalid value for field '{field}': '{value}'. {why}")


def required_field(field: str) -> ApiError:
    return ApiError(400, "required", f"Required field '{field}' not specified")


def not_found(resource: str) -> ApiError:
    """``resource``: path from ``projects/`` on."""
    return ApiError(404, "notFound", f"The resource '{resource}' was not found")


def already_exists(resource: str) -> ApiError:
    return ApiError(409, "alreadyExists", f"The resource '{resource}' already exists")


def check_current(field: str, supplied: str | None, current: str) -> None:
    """A change is of what its author has read. Checked at the call and again in the operation,
    where another change may have been faster (as in cloudfoundry/bosh-google-cpi-release#159).

    Raises:
        ApiError: 412, the fingerprint is a stale one.
    """
    if supplied != current:
        raise ApiError(
            412,
            "conditionNotMet",
            f"Supplied fingerprint does not match current {field} fingerprint.",
        )


def not_ready(resource: str) -> ApiError:
    return ApiError(400, "resourceNotReady", f"The resource '{resource}' is not ready")


def unauthenticated() -> ApiError:
    return ApiError(
        401,
        "authError",
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
        "cookie or other valid authentication credential.",
        status="UNAUTHENTICATED",
    )


def insufficient_scopes(service: str) -> ApiError:
    """``service``: ``compute`` or ``storage``."""
    return ApiError(
        403,
        "insufficientPermissions",
        "Request had insufficient authentication scopes.",
        status="PERMISSION_DENIED",
        details=[
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                "domain": "googleapis.com",
                "metadatas": {"service": f"{service}.googleapis.com"},
            }
        ],
    )


def not_emulated(method: str) -> ApiError:
    return ApiError(501, "notImplemented", f"{method} is not emulated")
