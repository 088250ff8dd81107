"""Coming back to a sweep: what runs of it is followed to its end, and nothing new is started."""

from __future__ import annotations

import re
import sys
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

from gce_backend.blueprint import Blueprint
from gce_backend.config import Settings, read_endpoints
from gce_backend.console import Console
from gce_backend.errors import GceBackendError
from gce_backend.presence import is_alive, is_dead
from gce_backend.storage import Storage
from gce_backend.submission import Submission, close_abandoned
from gce_backend.sweep.jobs import Plan, SweepJob
from gce_backend.sweep.results import Outcome, read_result
from gce_backend.sweep.store import (
    DIRECTORY_TAG,
    JOB_TAG,
    KEY_TAG,
    NUMBER_TAG,
    OUTPUT_TAG,
    SWEEP_TAG,
    SWEEPER_TAG,
    Row,
    SweepStore,
)
from gce_backend.sweep.sweep import Sweep
from gce_backend.tracking import CLIENT_TAG, INSTANCE_TAG, resolve_uri

_OPEN = ("RUNNING", "SCHEDULED")


def attach_sweep(run: str, tracking_uri: str | None) -> int | None:
    """Follow the sweep ``run`` until none of its jobs runs, and close it then.

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
        child = _without_abandoned(store, child, console)
        latest.setdefault(child.data.tags.get(JOB_TAG, child.info.run_id), child)
    children = sorted(latest.values(), key=_number)
    running = [child for child in children if child.info.status in _OPEN]
    console.say(f"sweep {run}: {len(children)} jobs were started, {len(running)} run")
    if not running and parent.info.status not in _OPEN:
        return int(any(child.info.status != "FINISHED" for child in children))
    return _Following(store, parent, children, console).to_the_end()


def _without_abandoned(store: SweepStore, child: Any, console: Console) -> Any:
    """The job's run as it is now: closed, where its client died before it asked for an instance."""
    if not close_abandoned(store, child):
        return child
    console.warn(
        f"job {_number(child)} (run {child.info.run_id}) never had an instance: its client ended "
        "before it asked for one. The run is closed; the sweep's own command starts the job again"
    )
    return store.get_run(child.info.run_id)


class _Following:
    def __init__(
        self, store: SweepStore, parent: Any, children: list[Any], console: Console
    ) -> None:
        self._store, self._parent, self._console = store, parent, console
        self._children = children
        self._endpoints = read_endpoints()
        self._directory = Path(parent.data.tags[DIRECTORY_TAG])
        self._settings: Settings | None = None  # of any job: where all of them went
        self._jobs = [job for job in map(self._job, children) if job is not None]

    def to_the_end(self) -> int:
        """Follow what runs, and close the sweep unless somebody may still start jobs of it."""
        adopted = {job.run_id for job in self._jobs}
        others = [child for child in self._children if child.info.run_id not in adopted]
        is_kept = self._is_kept(others)
        if self._settings is None:
            if not is_kept:
                self._close_empty()
            return 1
        sweep = self._sweep(self._settings)
        for child in others:
            self._tell_other(sweep, child, self._settings)
        self._follow(sweep)
        if not is_kept:
            sweep.close()
        return int(any(row.status != "COMPLETED" for row in sweep.table.rows.values()))

    def _follow(self, sweep: Sweep) -> None:
        futures = [sweep.add(job) for job in self._jobs]
        try:
            for future in futures:
                _wait(future)
        except KeyboardInterrupt:
            self._console.warn(sweep.leave())
            sys.exit(130)

    def _is_kept(self, others: list[Any]) -> bool:
        """Whether the sweep's client runs, or may: then it closes the sweep, and not we."""
        waiting = [child for child in others if child.info.status in _OPEN]
        for child in waiting:
            job, client = f"job {_number(child)} (run {child.info.run_id})", _client(child)
            self._console.warn(
                f"{job} has an instance, and nothing in the bucket to follow it with as a part of "
                f"the sweep. Follow it by itself: mlflow-gce attach {child.info.run_id}"
                if INSTANCE_TAG in child.data.tags
                else f"{job} has no instance yet, and its client (host, process, start: "
                f"{client or 'not known'}) may be about to ask for one; it is left as it is. If "
                "that client has ended, the sweep's own command goes on with the job"
            )
        sweeper = self._parent.data.tags.get(SWEEPER_TAG, "")
        alive = is_alive(sweeper) or any(is_alive(_client(child)) for child in self._children)
        if alive and not waiting:
            self._console.say("the sweep's client runs on this machine, and closes the sweep")
        # Between the sweep's own run and its first job's it is the only one to tell of a client.
        elsewhere = not self._children and bool(sweeper) and not is_dead(sweeper)
        if elsewhere and not alive:
            self._console.warn(
                f"the sweep has no jobs yet, and its client (host, process, start: {sweeper}) may "
                "be about to start them; it is left as it is"
            )
        return alive or elsewhere or bool(waiting)

    def _close_empty(self) -> None:
        run = self._parent.info.run_id
        self._store.close(run, "FAILED", {})
        self._console.warn(
            f"sweep {run}: nothing of it runs, and no job ever had an instance. It is closed; the "
            "same command goes on with it"
        )

    def _sweep(self, settings: Settings) -> Sweep:
        tags = self._parent.data.tags
        plan = Plan(
            name=tags[SWEEP_TAG],
            root=Path(tags.get("mlflow.source.name", self._directory)),
            words=tuple(f"{key}={value}" for key, value in self._parent.data.params.items()),
            digest="",
            directory=self._directory,
        )
        return Sweep(
            plan,
            settings,
            say=self._console.say,
            warn=self._console.warn,
            store=self._store,
            parent=self._parent,
        )

    def _job(self, child: Any) -> SweepJob | None:
        """A job that an earlier client started and that has not ended by the store."""
        is_open = child.info.status in _OPEN
        if INSTANCE_TAG not in child.data.tags or not (is_open or self._settings is None):
            return None
        submission = Submission.from_run(child, self._store.uri)
        storage = Storage(submission.bucket, project=submission.project)
        blueprint = Blueprint.load(storage, submission.paths, self._endpoints)
        if blueprint is None:
            return None
        self._settings = blueprint.settings
        if not is_open:
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

    def _tell_other(self, sweep: Sweep, child: Any, settings: Settings) -> None:
        """A row of the table for a job that ended before, or has no instance yet."""
        number, machine = _number(child), child.data.params.get("machine", "")
        sweep.table.rows[number] = Row(number, list(_overrides(child)), machine)
        if child.info.status in _OPEN:
            return
        is_well = child.info.status == "FINISHED"
        try:
            told = read_result(sweep.storage, str(child.info.artifact_uri))
        except GceBackendError:
            told = {}
        problem = "" if is_well else f"ended as {child.info.status} before"
        sweep.note(SweepJob(number, settings), Outcome(child.info.run_id, told, problem))


def _number(child: Any) -> int:
    return int(child.data.tags.get(NUMBER_TAG, 0))


def _client(child: Any) -> str:
    return str(child.data.tags.get(CLIENT_TAG, ""))


def _overrides(child: Any) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in child.data.params.items() if key != "machine")


def _wait(future: Any) -> None:
    while True:
        try:
            future.result(timeout=0.5)
            return
        except NotYet:
            continue
