"""Faults as data: what is to go wrong, for which call on which resource, and how often.

::

    emulator.inject(Fault("no_capacity", resource="europe-west1-b/*"))
    emulator.inject(Fault("unavailable", "instances.delete", times=3))
    emulator.inject(Fault("unavailable", "storage.objects.insert", "bucket/runs/*", times=None))

Three groups, told apart by the kind: an *answer* fault spoils the HTTP answer of any method of
either service; an *operation* fault lets the call succeed and the operation fail or hang; a
*guest* fault concerns the inside of an instance.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from .errors import ApiError


@enum.unique
class FaultKind(enum.StrEnum):
    # answers
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"  # HTTP 403, as Compute Engine says it
    TOO_MANY_REQUESTS = "too_many_requests"  # 429
    INTERNAL_ERROR = "internal_error"  # 500
    BAD_GATEWAY = "bad_gateway"  # 502
    UNAVAILABLE = "unavailable"  # 503
    FORBIDDEN = "forbidden"  # 403: a bucket that refuses, a missing permission
    QUOTA_EXCEEDED = "quota_exceeded"  # 403 quotaExceeded in the answer itself
    INSUFFICIENT_CAPACITY = "insufficient_capacity"  # 503, bulkInsert's spelling
    REPLY_LOST_BEFORE = "reply_lost_before"  # the connection breaks, nothing has happened
    REPLY_LOST_AFTER = "reply_lost_after"  # the connection breaks, the call has taken effect
    SLOW = "slow"  # the answer comes after `seconds` of the emulator's clock
    # operations
    NO_CAPACITY = "no_capacity"  # ZONE_RESOURCE_POOL_EXHAUSTED
    NO_CAPACITY_WITH_DETAILS = "no_capacity_with_details"  # …_WITH_DETAILS
    QUOTA_REGION = "quota_region"
    QUOTA_GLOBAL = "quota_global"
    OPERATION_FAILS = "operation_fails"  # INTERNAL_ERROR: a delete that does not delete
    OPERATION_SLOW = "operation_slow"  # RUNNING for `seconds` longer
    OPERATION_STUCK = "operation_stuck"  # never DONE, and no effect
    # guests
    NO_SSH = "no_ssh"  # the boot never reaches SSH
    NO_STARTUP_SCRIPT = "no_startup_script"
    NETWORK_CUT = "network_cut"  # while it is injected, nothing goes in or out


_OPERATION = frozenset(
    {
        FaultKind.NO_CAPACITY,
        FaultKind.NO_CAPACITY_WITH_DETAILS,
        FaultKind.QUOTA_REGION,
        FaultKind.QUOTA_GLOBAL,
        FaultKind.OPERATION_FAILS,
        FaultKind.OPERATION_SLOW,
        FaultKind.OPERATION_STUCK,
    }
)
_GUEST = frozenset({FaultKind.NO_SSH, FaultKind.NO_STARTUP_SCRIPT, FaultKind.NETWORK_CUT})
_ANSWER = frozenset(FaultKind) - _OPERATION - _GUEST

# What a fault is about when it does not say: running out is a matter of inserts.
_DEFAULT_METHOD = {
    FaultKind.NO_CAPACITY: "*nsert",
    FaultKind.NO_CAPACITY_WITH_DETAILS: "*nsert",
    FaultKind.QUOTA_REGION: "*nsert",
    FaultKind.QUOTA_GLOBAL: "*nsert",
    FaultKind.INSUFFICIENT_CAPACITY: "*.bulkInsert",
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        kind: a :class:`FaultKind` or its value.
        method: pattern for the API's method, ``instances.insert`` or ``storage.objects.insert``;
            empty: whatever the kind is about. Guest faults do not look at it.
        resource: pattern (``*`` also matches slashes) for the instance's ``NAME`` or
            ``ZONE/NAME``, the operation's name, the ``BUCKET`` or ``BUCKET/OBJECT``.
        times: how many calls it strikes; None: all, until cleared.
        seconds: for ``slow`` and ``operation_slow``.
    """

    kind: FaultKind | str
    method: str = ""
    resource: str = "*"
    times: int | None = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FaultKind(self.kind))
        if not self.method:
            object.__setattr__(self, "method", _DEFAULT_METHOD.get(FaultKind(self.kind), "*"))
        if self.times is not None and self.times < 1:
            raise ValueError(f"a fault strikes at least once: times={self.times}")

    def strikes(self, method: str, names: tuple[str, ...]) -> bool:
        return fnmatchcase(method, self.method) and (
            self.resource == "*" or any(fnmatchcase(name, self.resource) for name in names)
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Faults:
    """The faults that are set; each strike uses one up."""

    def __init__(self) -> None:
        self._left: list[tuple[Fault, int | None]] = []

    def inject(self, fault: Fault) -> None:
        self._left.append((fault, fault.times))

    def clear(self) -> None:
        self._left.clear()

    def pending(self) -> list[Fault]:
        return [fault for fault, _ in self._left]

    def take_answer(self, method: str, *names: str) -> Fault | None:
        return self._take(_ANSWER, method, names)

    def take_operation(self, method: str, *names: str) -> Fault | None:
        return self._take(_OPERATION, method, names)

    def take_guest(self, kind: FaultKind, *names: str) -> bool:
        return self._take(frozenset({kind}), "*", names) is not None

    def network_is_cut(self, *names: str) -> bool:
        """Looked at, not used up: a cut lasts until it is cleared."""
        return any(
            fault.kind is FaultKind.NETWORK_CUT
            and any(fnmatchcase(name, fault.resource) for name in names)
            for fault, _ in self._left
        )

    def _take(
        self, kinds: frozenset[FaultKind], method: str, names: tuple[str, ...]
    ) -> Fault | None:
        for index, (fault, left) in enumerate(self._left):
            if fault.kind not in kinds:
                continue
            guest = kinds <= _GUEST
            if not fault.strikes(fault.method if guest else method, names):
                continue
            if left == 1:
                del self._left[index]
            elif left is not None:
                self._left[index] = (fault, left - 1)
            return fault
        return None


_ANSWERS: dict[FaultKind, tuple[int, str, str]] = {
    FaultKind.RATE_LIMIT_EXCEEDED: (
        403,
        "rateLimitExceeded",
        "Quota exceeded for quota group 'default' and limit 'Queries per minute' of service "
        "'compute.googleapis.com'.",
    ),
    FaultKind.TOO_MANY_REQUESTS: (429, "rateLimitExceeded", "Too many requests. Slow down."),
    FaultKind.INTERNAL_ERROR: (500, "backendError", "Internal error. Please try again."),
    FaultKind.BAD_GATEWAY: (502, "backendError", "Bad gateway."),
    FaultKind.UNAVAILABLE: (503, "backendError", "Backend error. Please try again."),
    FaultKind.FORBIDDEN: (403, "forbidden", "Required permission is missing."),
    FaultKind.QUOTA_EXCEEDED: (403, "quotaExceeded", "Quota 'CPUS' exceeded. Limit: 24.0."),
    FaultKind.INSUFFICIENT_CAPACITY: (
        503,
        "insufficientCapacity",
        "There is not enough capacity to create the requested instances.",
    ),
}


def answer_error(fault: Fault) -> ApiError | None:
    """The error a fault answers with; None for a lost or slow reply."""
    known = _ANSWERS.get(FaultKind(fault.kind))
    return ApiError(known[0], known[1], known[2]) if known else None


def operation_error(fault: Fault, *, zone: str, resource: str) -> dict[str, Any] | None:
    """The fields ``error``, ``httpErrorStatusCode``, ``httpErrorMessage`` of a failed operation.

    Texts and codes as published from the real cloud: a stock-out in the operation of
    CCExtractor/sample-platform#901, both of its spellings in google/syzkaller#4385.
    """
    region = zone.rpartition("-")[0]
    kind = FaultKind(fault.kind)
    if kind in (FaultKind.NO_CAPACITY, FaultKind.NO_CAPACITY_WITH_DETAILS):
        return _no_capacity(zone, resource, with_details=kind is not FaultKind.NO_CAPACITY)
    if kind is FaultKind.QUOTA_REGION:
        return _quota("CPUS", "CPUS-per-project-region", {"region": region}, region)
    if kind is FaultKind.QUOTA_GLOBAL:
        return _quota(
            "GPUS_ALL_REGIONS", "GPUS-ALL-REGIONS-per-project", {"global": "global"}, "global"
        )
    if kind is FaultKind.OPERATION_FAILS:
        return _failed(500, "INTERNAL SERVER ERROR", "INTERNAL_ERROR", "Internal error.")
    return None


def _no_capacity(zone: str, resource: str, *, with_details: bool) -> dict[str, Any]:
    text = (
        f"The zone 'projects/{resource.split('/')[1]}/zones/{zone}' does not have enough "
        "resources available to fulfill the request."
    )
    if not with_details:
        text += " Try a different zone, or try again later."
        return _failed(503, "SERVICE UNAVAILABLE", "ZONE_RESOURCE_POOL_EXHAUSTED", text)
    text += "  '(resource type:compute)'."
    detail = {
        "errorInfo": {
            "reason": "resource_availability",
            "domain": "compute.googleapis.com",
            "metadatas": {"zone": zone, "attachment": "", "vmType": ""},
        }
    }
    return _failed(
        503, "SERVICE UNAVAILABLE", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", text, detail
    )


def _quota(metric: str, limit: str, dimensions: dict[str, str], where: str) -> dict[str, Any]:
    text = f"Quota '{metric}' exceeded.  Limit: 0.0" + (
        " globally." if where == "global" else f" in region {where}."
    )
    detail = {
        "quotaInfo": {
            "metricName": f"compute.googleapis.com/{metric.lower()}",
            "limitName": limit,
            "dimensions": dimensions,
            "limit": 0.0,
        }
    }
    return _failed(403, "FORBIDDEN", "QUOTA_EXCEEDED", text, detail)


def _failed(
    status: int, reason: str, code: str, message: str, detail: dict[str, Any] | None = None
) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if detail:
        error["errorDetails"] = [detail]
    return {
        "error": {"errors": [error]},
        "httpErrorStatusCode": status,
        "httpErrorMessage": reason,
    }
