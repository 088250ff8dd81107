"""Runs whose bucket holds what the tracking store lacks: found, and told of by every command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gce_backend.agent.records import APPLIED_TAG
from gce_backend.console import Console
from gce_backend.errors import GceBackendError, TrackingError
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

_RUNS_AT_ONCE = 8
_RETRY_SECONDS = 5.0  # a look by the way must not take long
# What has just come is left to the client that may be following.
_FRESH_SECONDS = 30.0


def unsynced_runs(tracking: Tracking, *, by_the_way: bool = True) -> list[Submission]:
    """Runs of this store that the bucket has more of, the oldest first.

    Those that somebody deleted are left out.

    Args:
        by_the_way: leave out also what has just come, since a client may be following, and runs
            whose bucket does not answer. Otherwise both are among them: whoever then syncs them
            waits for that client, and tells of that bucket.

    Raises:
        TrackingError: the store does not answer.
    """
    runs = [run for run in tracking.open_runs() if run.info.lifecycle_stage == "active"]
    runs.sort(key=lambda run: int(run.info.start_time or 0))
    with ThreadPoolExecutor(_RUNS_AT_ONCE) as pool:
        found = pool.map(lambda run: _unsynced(run, tracking.uri, by_the_way), runs)
        return [submission for submission in found if submission is not None]


def notice(unsynced: Sequence[Submission]) -> str:
    """One line for the user; "" when there is nothing to tell."""
    if not unsynced:
        return ""
    what = "1 run has" if len(unsynced) == 1 else f"{len(unsynced)} runs have"
    which = unsynced[0].run_id if len(unsynced) == 1 else "--all"
    return (
        f"{what} metrics in the bucket that the tracking store lacks. Run: mlflow-gce sync {which}"
    )


def warn(tracking: Tracking, console: Console, *, but: str | None = None) -> None:
    """Tell of what is unsynced, by the way: never raises.

    Args:
        but: a run that the command itself is about.
    """
    try:
        found = [one for one in unsynced_runs(tracking) if one.run_id != but]
    except GceBackendError:
        return  # a store that is away is told of by whoever needs it
    if text := notice(found):
        console.warn(text)


def _unsynced(run: Any, tracking_uri: str, by_the_way: bool) -> Submission | None:
    try:
        here = Submission.from_run(run, tracking_uri)
    except (TrackingError, ValueError, KeyError):
        return None
    latest = time.time() - _FRESH_SECONDS if by_the_way else float("inf")
    try:
        came = _since(here, int(run.data.tags.get(APPLIED_TAG, "0")))
    except (GceBackendError, ValueError):
        return None if by_the_way else here
    return here if came is not None and came < latest else None


def _since(here: Submission, position: int) -> float | None:
    """Since when (unix seconds) the bucket has more than the store; None where it has not."""
    storage = Storage(here.bucket, project=here.project, retry_seconds=_RETRY_SECONDS)
    segments = storage.read_journal(here.paths, position, limit=1)
    if segments:
        records = segments[0][1]
        return float(records[0].get("at", 0)) / 1000 if records else 0.0
    status = storage.read_json(here.paths.status)
    # An earlier attempt's says nothing of the run's end.
    if not status or status.get("attempt") != here.attempt:
        return None
    return float(status.get("written_at", 0))
