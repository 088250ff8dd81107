"""A job of a sweep, and what is done for one, as the scheduler sees them."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from gce_backend.config import Settings
from gce_backend.lifecycle import EndReason
from gce_backend.submission import Submission
from gce_backend.sweep.results import Outcome


@dataclass
class Job:
    """One job, and how far it is.

    Args:
        adopted: an instance that an earlier client asked for.
        may_start: whether it may get an instance from here; else it is only followed.
    """

    number: int
    settings: Settings
    adopted: Submission | None = None
    may_start: bool = True
    detached: bool = False
    future: Future[Outcome] = field(default_factory=Future)
    attempts: int = 0
    refusals: int = 0
    not_before: float = 0.0
    submission: Submission | None = None
    started_at: float = 0.0
    looked_at: float = 0.0
    is_being_looked_at: bool = False


class JobWork(Protocol):
    """What is done for a job; called from several threads."""

    def list(self) -> dict[str, str]:
        """Name and status of every instance there is."""

    def submit(self, job: Any, settings: Settings) -> Submission:
        """Everything into the bucket, and an instance. Raises GceBackendError: nothing bills."""

    def look(self, job: Any) -> bool:
        """Bring home what the job has logged; True when it has ended or given no sign of life."""

    def exists(self, job: Any) -> bool: ...

    def finish(self, job: Any) -> tuple[Outcome, EndReason]:
        """Results proven, instance gone, the store told."""

    def failed(self, job: Any, error: BaseException) -> Outcome:
        """The outcome of a job that has no instance."""

    def submitted(self, job: Any) -> Outcome:
        """The outcome of a job that nobody here waits for."""

    def abandon(self, job: Any) -> None:
        """A job that was queued will not be started from here."""

    def warn(self, text: str) -> None: ...
