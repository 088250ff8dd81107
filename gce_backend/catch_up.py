"""Several runs brought up to date from their buckets; one that fails stops no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gce_backend.config import Endpoints
from gce_backend.console import Console
from gce_backend.errors import GceBackendError
from gce_backend.runner import Runner
from gce_backend.submission import Submission


@dataclass(frozen=True)
class Synced:
    """What became of one run.

    Args:
        records: how many of its journal's records are in the store now that were not before.
        refused: how many of these the store did not accept, and were set aside.
        error: why it could not be brought up to date, with what to do; None when it was.
    """

    run_id: str
    records: int = 0
    refused: int = 0
    error: str | None = None


def sync_runs(
    submissions: Iterable[Submission], *, endpoints: Endpoints, console: Console
) -> Iterator[Synced]:
    """Apply each run's journal, and its end where it has ended. Each is told as it is done."""
    for submission in submissions:
        try:
            runner = Runner(submission, endpoints=endpoints, console=console)
            records = runner.sync()
        except GceBackendError as error:
            yield Synced(submission.run_id, error=str(error))
        else:
            yield Synced(submission.run_id, records, runner.refused)
