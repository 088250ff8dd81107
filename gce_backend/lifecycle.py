"""The law of a run: where its instance is, and how the run ended. Pure: no I/O, no clock.

::

    QUEUED ─▶ CREATING ─▶ BOOTING ─▶ RUNNING ─▶ COLLECTING ─▶ DELETING ─▶ DELETED
       │          │           │          │            ▲            │  ▲
       │          └───────────┴──────────┴────────────┼─▶ DELETING  ▼  │
       │                      └───────────────────────┘         ORPHANED
       └─▶ DELETED  (nothing was ever asked for)

Two rules:

1. Every change of phase goes through ``Lifecycle.advance``; what ``NEXT`` does not list is a bug.
2. ``Phase`` says where the instance is, ``EndReason`` how the run ended. Neither implies the other:
   an instance may be ORPHANED after a run that SUCCEEDED.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


@enum.unique
class Phase(enum.Enum):
    """Where the instance of the current attempt is."""

    QUEUED = "queued"  # nothing asked of Compute Engine yet: costs nothing
    CREATING = "creating"  # insert sent: an instance may exist and bill
    BOOTING = "booting"  # the instance exists; its agent has not started the entry point
    RUNNING = "running"  # the entry point runs
    COLLECTING = "collecting"  # the entry point has ended; results on their way to the bucket
    DELETING = "deleting"  # delete sent, no 404 seen yet: may bill
    DELETED = "deleted"  # a GET said 404: costs nothing. The only final phase
    ORPHANED = "orphaned"  # a delete failed: bills until another try succeeds or the deadline


_P = Phase

NEXT: Mapping[Phase, frozenset[Phase]] = {
    _P.QUEUED: frozenset({_P.CREATING, _P.DELETED}),
    _P.CREATING: frozenset({_P.BOOTING, _P.DELETING}),
    _P.BOOTING: frozenset({_P.RUNNING, _P.COLLECTING, _P.DELETING}),
    _P.RUNNING: frozenset({_P.COLLECTING, _P.DELETING}),
    _P.COLLECTING: frozenset({_P.DELETING}),
    _P.DELETING: frozenset({_P.DELETED, _P.ORPHANED}),
    _P.ORPHANED: frozenset({_P.DELETING}),
    _P.DELETED: frozenset(),
}


@enum.unique
class EndReason(enum.Enum):
    """How a run ended. The values of the first block are what the agent writes in status.json."""

    SUCCEEDED = "succeeded"  # exit code 0, results proven to be in the bucket
    EXITED_NONZERO = "exited_nonzero"  # the entry point failed
    CANCELLED = "cancelled"  # somebody asked for the end
    DEADLINE = "deadline"  # gce.max_hours was over
    STALLED = "stalled"  # no log, no metric, no CPU for gce.stall_minutes, and gce.stall_action=end
    ENVIRONMENT_FAILED = "environment_failed"  # requirements could not be installed
    AGENT_FAILED = "agent_failed"  # the agent could not do its work

    RESULTS_UNVERIFIED = "results_unverified"  # ended, but the bucket lacks something
    NO_CAPACITY = "no_capacity"  # every zone is out of the machine type
    QUOTA_EXCEEDED = "quota_exceeded"
    REFUSED = "refused"  # permission or request refused by an API before an instance existed
    BOOT_TIMEOUT = "boot_timeout"  # the instance never reported in
    PREEMPTED = "preempted"  # Compute Engine took the spot instance back
    INSTANCE_LOST = "instance_lost"  # the instance vanished before it had written its status
    SUBMIT_FAILED = "submit_failed"  # the client failed before the insert


@dataclass(frozen=True)
class Outcome:
    """What an end reason means.

    Args:
        mlflow_status: FINISHED, FAILED or KILLED, as MLflow's ``RunStatus`` spells them.
        goes_on: the run goes on in another attempt, from its last checkpoint, while there are any
            left.
    """

    mlflow_status: str
    goes_on: bool = False


_R = EndReason

OUTCOME: Mapping[EndReason, Outcome] = {
    _R.SUCCEEDED: Outcome("FINISHED"),
    _R.EXITED_NONZERO: Outcome("FAILED"),
    _R.CANCELLED: Outcome("KILLED"),
    _R.DEADLINE: Outcome("KILLED"),
    _R.STALLED: Outcome("FAILED"),
    _R.ENVIRONMENT_FAILED: Outcome("FAILED"),
    _R.AGENT_FAILED: Outcome("FAILED"),
    _R.RESULTS_UNVERIFIED: Outcome("FAILED"),
    _R.NO_CAPACITY: Outcome("FAILED"),
    _R.QUOTA_EXCEEDED: Outcome("FAILED"),
    _R.REFUSED: Outcome("FAILED"),
    _R.BOOT_TIMEOUT: Outcome("FAILED"),
    _R.PREEMPTED: Outcome("FAILED", goes_on=True),
    _R.INSTANCE_LOST: Outcome("FAILED", goes_on=True),
    _R.SUBMIT_FAILED: Outcome("FAILED"),
}


class IllegalTransition(RuntimeError):
    """A phase change that ``NEXT`` does not list: a bug of ours."""


@dataclass(frozen=True)
class Step:
    """One line of a life: the phase entered, when (unix seconds), and why."""

    phase: Phase
    at: float
    why: str


@dataclass
class Lifecycle:
    """One attempt's life. Time comes in as an argument."""

    phase: Phase = Phase.QUEUED
    history: list[Step] = field(default_factory=list)

    def advance(self, to: Phase, *, at: float, why: str = "") -> None:
        """Enter phase ``to``.

        Raises:
            IllegalTransition: ``NEXT`` does not allow it; nothing has changed.
        """
        if to not in NEXT[self.phase]:
            raise IllegalTransition(f"{self.phase.value} -> {to.value} is not a transition")
        self.phase = to
        self.history.append(Step(to, at, why))

    def catch_up(self, to: Phase, *, at: float, why: str = "") -> None:
        """Enter ``to`` from wherever it can be reached, passing through the phases between.

        The client learns of the instance's phases from a heartbeat, so it may miss some. One that
        was passed already (a client that came back reads them again) changes nothing.
        """
        is_passed = any(step.phase is to for step in self.history) and to not in NEXT[self.phase]
        if to is self.phase or is_passed:
            return
        for phase in _path(self.phase, to):
            self.advance(phase, at=at, why=why)


def _path(start: Phase, goal: Phase) -> list[Phase]:
    """The shortest way from ``start`` to ``goal``: it claims no phase that need not have been."""
    ways: list[list[Phase]] = [[start]]
    for way in ways:  # grows while it is walked
        if way[-1] is goal and len(way) > 1:
            return way[1:]
        ways += [[*way, n] for n in sorted(NEXT[way[-1]], key=_ORDER.index) if n not in way[1:]]
    raise IllegalTransition(f"no way leads from {start.value} to {goal.value}")


_ORDER = list(Phase)
