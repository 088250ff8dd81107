"""Coming back to a sweep: what runs of it is followed to its end, and nothing new is started."""

from __future__ import annotations

import re
import sys
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

from gce_backend.blueprint import Blueprint
from gce_backend.config import read_endpoints
from gce_backend.console import Console
from gce_backend.errors import GceBackendError, TrackingError
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.sweep.jobs import Plan, SweepJob
from gce_backend.sweep.results import Outcome, read_result
from gce_backend.sweep.store import (
    DIRECTORY_TAG,
    JOB_TAG,
    KEY_TAG,
    NUMBER_TAG,
    OUTPUT_TAG,
    SWEEP_TAG,
    Row,
    SweepStore,
)
from gce_backend.sweep.sweep import Sweep
from gce_backend.tracking import resolve_uri


def attach_sweep(run: str, tracking_uri: str | None) -> int | None:
    """Follow the sweep ``run`` until none of its jobs runs.

    Returns:
        The exit code: 0 when every job that was started completed. None: that run is no sweep.

    Raises:
        GceBackendError: the store or the cloud does not answer; the jobs go on by themselves.
    """
    if not re.fullmatch("[0-9a-f]{32}", run):
        return None
    store = SweepStore(resolve_uri(tracking_uri))
    parent = store.get_run(run)
    if KEY_TAG not in parent.data.tags:
        return None
    console = Console()
    latest: dict[str, Any] = {}
    for child in store.children(parent.info.experiment_id, run):
        latest.setdefault(child.data.tags.get(JOB_TAG, child.info.run_id), child)
    children = sorted(latest.values(), key=_number)
    running = [child for child in children if child.info.status in ("RUNNING", "SCHEDULED")]
    console.say(f"sweep {run}: {len(children)} jobs were started, {len(running)} run")
    if not running:
        return int(any(child.info.status != "FINISHED" for child in children))
    return _Following(store, parent, children, console).to_the_end()


class _Following:
    def __init__(
        self, store: SweepStore, parent: Any, children: list[Any], console: Console
    ) -> None:
        self._store, self._children, self._console = store, children, console
        self._endpoints = read_endpoints()
        tags = parent.data.tags
        self._directory = Path(tags[DIRECTORY_TAG])
        self._jobs = [job for job in map(self._job, children) if job is not None]
        plan = Plan(
            name=tags[SWEEP_TAG],
            root=Path(tags.get("mlflow.source.name", self._directory)),
            words=tuple(f"{key}={value}" for key, value in parent.data.params.items()),
            digest="",
            directory=self._directory,
        )
        self._sweep = Sweep(
            plan,
            self._jobs[0].settings,
            say=console.say,
            warn=console.warn,
            store=store,
            parent=parent,
        )

    def to_the_end(self) -> int:
        sweep = self._sweep
        adopted = {job.run_id for job in self._jobs}
        for child in self._children:
            if child.info.run_id not in adopted:
                self._tell_ended(child)
        futures = [sweep.add(job) for job in self._jobs]
        try:
            for future in futures:
                _wait(future)
        except KeyboardInterrupt:
            self._console.warn(sweep.leave())
            sys.exit(130)
        sweep.close()
        return int(any(row.status != "COMPLETED" for row in sweep.table.rows.values()))

    def _job(self, child: Any) -> SweepJob | None:
        """A job that an earlier client started and that has not ended by the store."""
        if child.info.status not in ("RUNNING", "SCHEDULED"):
            return None
        try:
            submission = Submission.from_run(child, self._store.uri)
            storage = Storage(submission.bucket, project=submission.project)
            blueprint = Blueprint.load(storage, submission.paths, self._endpoints)
        except TrackingError:
            return None  # its client was ended before it asked for the instance
        if blueprint is None:
            return None
        output = child.data.tags.get(OUTPUT_TAG)
        return SweepJob(
            _number(child),
            blueprint.settings,
            adopted=submission,
            may_start=False,
            overrides=_overrides(child),
            key=child.data.tags.get(JOB_TAG, ""),
            output_dir=Path(output) if output and self._directory.is_dir() else None,
            run_id=child.info.run_id,
            artifact_uri=str(child.info.artifact_uri),
        )

    def _tell_ended(self, child: Any) -> None:
        """A row of the table for a job that ended before."""
        number, sweep = _number(child), self._sweep
        machine = child.data.params.get("machine", "")
        sweep.table.rows[number] = Row(number, list(_overrides(child)), machine)
        is_well = child.info.status == "FINISHED"
        try:
            told = read_result(sweep.storage, str(child.info.artifact_uri))
        except GceBackendError:
            told = {}
        problem = "" if is_well else f"ended as {child.info.status} before"
        job = SweepJob(number, self._jobs[0].settings)
        sweep.note(job, Outcome(child.info.run_id, told, problem))


def _number(child: Any) -> int:
    return int(child.data.tags.get(NUMBER_TAG, 0))


def _overrides(child: Any) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in child.data.params.items() if key != "machine")


def _wait(future: Any) -> None:
    while True:
        try:
            future.result(timeout=0.5)
            return
        except NotYet:
            continue
