"""What Compute Engine, its client library and the network raise, told in our terms.

Decided by type, code and reason; never by searching in a text, save for what the API tells in no
other way: the scope of a quota, and which resource is not found. Codes and where they appear: the
API's documentation on troubleshooting instance creation, and operations published in public issues.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gce_backend.credentials import explain
from gce_backend.errors import (
    AlreadyExists,
    ChangedMeanwhile,
    ComputeError,
    GceBackendError,
    InstanceNotFound,
    InternalError,
    NoCapacity,
    NotOffered,
    PermissionDenied,
    QuotaExceeded,
)
from gce_backend.urls import stopped_emulator

_NO_CAPACITY = {
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
    "REGION_RESOURCE_POOL_EXHAUSTED",
    "RESOURCE_POOL_EXHAUSTED",
    "GPU_STOCKOUT",
    "UNSUPPORTED_OPERATION",  # a spot instance preempted while it was created
    "RESOURCE_NOT_FOUND",  # the instance vanished while it was created
    "insufficientCapacity",
}
_QUOTA = {"QUOTA_EXCEEDED", "quotaExceeded"}
_RATE_LIMIT = {"rateLimitExceeded", "userRateLimitExceeded", "RESOURCE_OPERATION_RATE_EXCEEDED"}
_INSTANCE = re.compile(r"zones/[^/\s]+/instances/[^/\s:]+")
# A 400 of the insert's own check, or a 404 of the resource that the insert names.
_NOT_OFFERED = re.compile(
    r"(Machine|Accelerator) type with name '[^']+' does not exist in zone"
    r"|/zones/[^/']+/(machineTypes|acceleratorTypes)/[^/']+' was not found"
)
_INTERNAL = {"INTERNAL_ERROR"}  # of an operation, seen of inserts: ubicloud/ubicloud#5495
_RETRIED_STATUS = {429, 500, 502, 503, 504}


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a little later.

    The client library itself retries only a GET that got 503.
    """
    import google.auth.exceptions
    import requests
    from google.api_core import exceptions

    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return not stopped_emulator(error)
    if isinstance(error, google.auth.exceptions.TransportError):
        return True  # the token's server did not answer
    if not isinstance(error, exceptions.GoogleAPICallError):
        return False
    reasons = _reasons(error)
    if reasons & _NO_CAPACITY:
        return False  # answered by another zone, not by patience
    return error.code in _RETRIED_STATUS or bool(reasons & _RATE_LIMIT)


def may_have_effect(error: Exception) -> bool:
    """Whether a request that failed so may have been carried out all the same."""
    import google.auth.exceptions
    from google.api_core import exceptions

    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return False  # without a token it was not even sent
    if isinstance(error, exceptions.GoogleAPICallError):
        return int(error.code or 500) >= 500
    return is_transient(error)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise our errors for the library's; ``what`` begins the message: the call and its object.

    Where it names an instance (``zones/Z/instances/NAME``), a 404 is `InstanceNotFound` only if
    the API itself says so of that instance: a proxy's page and another resource's 404 prove
    nothing.
    """
    import google.auth.exceptions
    import requests
    from google.api_core import exceptions

    try:
        yield
    except GceBackendError:
        raise
    except exceptions.GoogleAPICallError as error:
        raised = _from_http(what, error)
        raised.transient = raised.transient or is_transient(error)
        raise raised from error
    except google.auth.exceptions.TransportError as error:
        away = ComputeError(f"{what}: no token came ({error})")
        away.transient = True
        raise away from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionDenied(f"{what}: {explain(error)}") from error
    except requests.RequestException as error:
        said = stopped_emulator(error) or f"Compute Engine did not answer ({error})"
        away = ComputeError(f"{what}: {said}")
        away.transient = True
        raise away from error


def from_operation(what: str, operation: Mapping[str, Any]) -> ComputeError | None:
    """The error an ended operation carries, or None.

    Looks into ``error.errors`` itself: the library's ``result()`` calls an operation without
    ``httpErrorStatusCode`` a success, whatever errors it lists.
    """
    errors: Sequence[Mapping[str, Any]] = operation.get("error", {}).get("errors", [])
    if not errors and not operation.get("httpErrorStatusCode"):
        return None
    codes = {str(item.get("code", "")) for item in errors}
    text = "; ".join(f"{item.get('code')}: {item.get('message')}" for item in errors)
    status = int(operation.get("httpErrorStatusCode") or 0)
    message = f"{what}: {text or operation.get('httpErrorMessage') or status}"
    return _by_code(message, status, codes)


def _from_http(what: str, error: Any) -> ComputeError:
    message = f"{what}: {error.code} {error.message}"
    reasons = _reasons(error)
    asked = _INSTANCE.search(what)
    is_about_it = asked is not None and f"/{asked[0]}'" in str(error.message)
    if error.code == 404 and "notFound" in reasons and is_about_it:
        return InstanceNotFound(message)
    return _by_code(message, int(error.code or 0), reasons)


def _by_code(message: str, status: int, codes: set[str]) -> ComputeError:
    if codes & _NO_CAPACITY:
        return NoCapacity(message)
    if codes & _QUOTA:
        return QuotaExceeded(message, is_global="GPUS_ALL_REGIONS" in message)
    if codes & _INTERNAL:
        return InternalError(message)
    if codes & {"alreadyExists", "RESOURCE_ALREADY_EXISTS"}:
        return AlreadyExists(message)
    if "CONDITION_NOT_MET" in codes:  # of an operation, seen in bosh-google-cpi-release#159
        return ChangedMeanwhile(message)
    if status in (401, 403):
        return PermissionDenied(message)
    if status in (400, 404) and _NOT_OFFERED.search(message):
        return NotOffered(message)
    return ComputeError(message)


def _reasons(error: Any) -> set[str]:
    found = set()
    for item in error.errors or []:
        reason = item.get("reason") if isinstance(item, dict) else getattr(item, "code", None)
        found.add(str(reason))
    return found
