"""What becomes of an instance, as Compute Engine tells it: there, taken back, stopped, deleted.

Only the API's own word counts. An API that does not answer is no news: the bucket tells how the
run goes, and each look here is short, so that following never waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gce_backend.compute import Compute
from gce_backend.errors import ComputeError, InstanceNotFound
from gce_backend.lifecycle import EndReason
from gce_backend.presence import is_dead
from gce_backend.submission import Submission

_LOOK_SECONDS = 5.0
_MOST_LOOK_SECONDS = 60.0  # between two looks at an API that does not answer
_STOPPED = ("TERMINATED", "STOPPED", "SUSPENDED")
# A client that may be at work on another machine has so long to make its insert take effect.
_INSERT_SECONDS = 1200.0
# What a client sent in its last moment may still be on its way.
_LATE_SECONDS = 20.0


@dataclass(frozen=True)
class Loss:
    """An instance that works no more, and left no status.

    Args:
        detail: one sentence, of what came back.
        taken: Compute Engine took it; nobody asked for that.
        stopped: it exists, with its disk.
        at: unix seconds at which it went, by Compute Engine's record; 0 where that has nothing.
    """

    reason: EndReason
    detail: str
    taken: bool = False
    stopped: bool = False
    at: float = 0.0


class InstanceWatch:
    """Looks at one attempt's instance, now and then."""

    def __init__(self, submission: Submission, compute: Compute) -> None:
        self._submission = submission
        self._compute = compute
        self._next_look = 0.0
        self._pause = _LOOK_SECONDS
        #: time.monotonic() when it was first seen running.
        self.running_since: float | None = None
        self.is_known = False  # it was seen, or gave a sign of life

    def look(self) -> Loss | None:
        """The instance's loss, or None while it is there, or cannot be asked, or was just seen."""
        if time.monotonic() < self._next_look:
            return None
        try:
            loss = self._look()
        except ComputeError:
            loss = None
            self._pause = min(self._pause * 2, _MOST_LOOK_SECONDS)
        else:
            self._pause = _LOOK_SECONDS
        self._next_look = time.monotonic() + self._pause
        return loss

    def soon(self) -> None:
        """Let the next look be at once: something has changed."""
        self._next_look = 0.0

    def _look(self) -> Loss | None:
        here = self._submission
        try:
            status = str(self._compute.get(here.zone, here.instance).get("status"))
        except InstanceNotFound:
            return self._absent()
        self.is_known = True
        if status == "RUNNING" and self.running_since is None:
            self.running_since = time.monotonic()
        if status not in _STOPPED:
            return None
        taken = {"compute.instances.hostError", "compute.instances.preempted"} & self._kinds()
        detail = f"instance {here.instance!r} is {status}{_because(taken)}, and it left no status"
        return Loss(EndReason.INSTANCE_LOST, detail, taken=bool(taken), stopped=True)

    def _absent(self) -> Loss | None:
        here = self._submission
        operations = self._compute.operations_on(here.zone, here.instance)
        kinds = {str(each.get("operationType")) for each in operations}
        at = _went_at(operations)
        if "compute.instances.preempted" in kinds:
            detail = f"Compute Engine took {here.instance!r} back"
            return Loss(EndReason.PREEMPTED, detail, taken=True, at=at)
        # An insert that fails may show its instance before; without a record, who saw it knows.
        if not _was_made(operations) and ("insert" in kinds or not self.is_known):
            return self._never_made(operations)
        detail = f"instance {here.instance!r} no longer exists (404), and it left no status"
        if "delete" not in kinds:
            return Loss(EndReason.INSTANCE_LOST, detail, taken=True)
        by_system = any(
            each.get("operationType") == "delete" and each.get("user") == "system"
            for each in operations
        )
        if by_system or time.time() > here.deadline:
            return Loss(EndReason.DEADLINE, f"{detail}: its deadline has passed", at=at)
        return Loss(EndReason.INSTANCE_LOST, f"{detail}: somebody deleted it", at=at)

    def _never_made(self, operations: Sequence[dict[str, Any]]) -> Loss | None:
        """None as long as an insert may still take effect."""
        here = self._submission
        if any(each.get("status") != "DONE" for each in operations):
            return None
        # Whoever submits goes on to other zones; a further attempt's claim tells of that.
        if (not operations or here.attempt == 1) and not has_given_up(here):
            return None
        detail = f"instance {here.instance!r} was never created"
        return Loss(EndReason.SUBMIT_FAILED, detail, at=here.created_at)

    def _kinds(self) -> set[str]:
        here = self._submission
        operations = self._compute.operations_on(here.zone, here.instance)
        # Newest first: what was before it was last started is of no account.
        kinds: set[str] = set()
        for each in sorted(operations, key=lambda one: str(one.get("insertTime")), reverse=True):
            if each.get("operationType") in ("start", "insert"):
                break
            kinds.add(str(each.get("operationType")))
        return kinds


def has_given_up(submission: Submission) -> bool:
    """Whether the client that announced this instance will not ask for it any more."""
    patience = _LATE_SECONDS if is_dead(submission.client) else _INSERT_SECONDS
    return time.time() > submission.created_at + patience


def _was_made(operations: Sequence[dict[str, Any]]) -> bool:
    """Whether an insert took effect, and so an instance existed."""
    return any(
        each.get("operationType") == "insert"
        and each.get("status") == "DONE"
        and not each.get("error")
        and not each.get("httpErrorStatusCode")
        for each in operations
    )


def _went_at(operations: Sequence[dict[str, Any]]) -> float:
    """When the last operation that takes an instance away was at work; 0 where there is none."""
    times = [
        datetime.fromisoformat(str(each.get("endTime") or each["insertTime"])).timestamp()
        for each in operations
        if each.get("operationType") in ("delete", "compute.instances.preempted")
        and (each.get("endTime") or each.get("insertTime"))
    ]
    return max(times, default=0.0)


def _because(kinds: set[str]) -> str:
    return f" ({', '.join(sorted(kind.rpartition('.')[2] for kind in kinds))})" if kinds else ""
