"""What is done for each job of a sweep: ``work.JobWork`` on the cloud."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gce_backend.agent.paths import RUN_LABEL, RunPaths
from gce_backend.backend import GceSubmittedRun
from gce_backend.blueprint import Blueprint
from gce_backend.budget import within_cost
from gce_backend.compute import Compute
from gce_backend.config import Settings
from gce_backend.console import Console
from gce_backend.environment import Environment
from gce_backend.errors import (
    GceBackendError,
    NoCapacity,
    QuotaExceeded,
    RunWaiting,
    TrackingError,
)
from gce_backend.forwarding import forward_target, permitted
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import EndReason
from gce_backend.project import EntryPoint, Source
from gce_backend.request import ATTEMPT, InstanceRequest
from gce_backend.rest import compute_rest
from gce_backend.shipment import Shipment, run_spec
from gce_backend.submission import Submission
from gce_backend.sweep.results import (
    FETCH_ERRORS,
    RESULT,
    Outcome,
    fetch_outputs,
    proven_end,
    read_result,
)
from gce_backend.sweep.store import COMMAND, JOB_TAG, NOT_STARTED, NUMBER_TAG, OUTPUT_TAG, job_name
from gce_backend.sweep.work import Job
from gce_backend.sync import JournalApplier
from gce_backend.tracking import Experiment

if TYPE_CHECKING:
    from gce_backend.sweep.sweep import Sweep


@dataclass
class SweepJob(Job):
    """A job with what it runs.

    Args:
        archive: ``job.pyz``; empty for one that an earlier client submitted.
        output_dir: where its files belong on this machine.
        is_spent: its run has ended; a further attempt is a further run.
    """

    overrides: tuple[str, ...] = ()
    key: str = ""
    archive: bytes = b""
    output_dir: Path | None = None
    run_id: str = ""
    is_spent: bool = False
    artifact_uri: str = ""
    is_running: bool = False
    applier: JournalApplier | None = None  # of its last submission


@dataclass(frozen=True)
class Plan:
    """What all jobs of a sweep share.

    Args:
        words: the overrides as they were written, `key=1,2,3`.
        digest: of the configuration that is swept over.
        resume: "auto", "never", or the id of a sweep to go on with.
        direction: "minimize" or "maximize" where it is known.
        register: the name under which the best job's model is registered; None: it is not.
        env: plain variables for the jobs; never secret, they stand in the bucket.
    """

    name: str
    root: Path
    words: tuple[str, ...]
    digest: str
    directory: Path
    resume: str = "auto"
    direction: str | None = None
    register: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    hydra_version: str = ""


@dataclass(frozen=True)
class Common:
    """What every job is made from, in the bucket and in the store."""

    source: Source
    environment: Environment
    experiment: Experiment
    shipment: Shipment


class Jobs:
    """Called from the scheduler's threads."""

    def __init__(self, sweep: Sweep, settings: Settings) -> None:
        self._sweep = sweep
        self._project = settings.project
        self._rest = compute_rest(settings.endpoints.compute)
        self._compute = Compute(settings.project, endpoint=settings.endpoints.compute)

    def list(self) -> dict[str, str]:
        query: dict[str, Any] = {
            "filter": f"labels.{RUN_LABEL}:*",
            "maxResults": 500,
            "fields": "items/*/instances(name,status),nextPageToken",
        }
        found = {}
        what = f"listing the instances of project {self._project!r}"
        while True:
            path = f"projects/{self._project}/aggregated/instances"
            page = self._rest.get(what, path, **query)
            for scope in page.get("items", {}).values():
                for instance in scope.get("instances", []):
                    found[instance["name"]] = instance["status"]
            if not page.get("nextPageToken"):
                return found
            query["pageToken"] = page["nextPageToken"]

    def submit(self, job: SweepJob, settings: Settings) -> Submission:
        sweep, common = self._sweep, self._sweep.common
        assert common is not None, "a sweep that is only followed starts nothing"
        try:
            forward = forward_target(sweep.store.uri, settings)
            settings = permitted(within_cost(settings), forward)
            with sweep.store_lock:
                if not job.run_id or job.is_spent:
                    job.run_id = self._create_run(job, common, settings)
                    job.is_spent = False
                tracking = sweep.store.spec(common.experiment, job.run_id)
            tracking["forward"] = forward
            job.artifact_uri = str(tracking["run"]["info"]["artifact_uri"])
            paths = RunPaths(settings.gce.prefix, job.run_id)
            sweep.storage.put(paths.job, job.archive)
            spec = self._spec(job, common, settings, tracking, paths)
            sweep.storage.put_json(paths.spec, spec)
            Blueprint(settings, common.shipment.agent).save(sweep.storage, paths)
            return InstanceRequest(
                settings,
                common.shipment.agent,
                paths,
                sweep.store,
                Console(quiet=True),
                Interrupts(active=False),
                storage=sweep.storage,
            ).in_first_zone_with_room()
        except (NoCapacity, QuotaExceeded):
            raise  # asked for again, for the same run
        except BaseException:
            if job.run_id:
                with contextlib.suppress(TrackingError):
                    sweep.store.terminate(job.run_id, EndReason.SUBMIT_FAILED)
                job.is_spent = True
            raise

    def look(self, job: SweepJob) -> bool:
        storage, submission = self._sweep.storage, job.submission
        assert submission is not None
        if storage.exists(submission.paths.status):
            return True
        heartbeat = storage.read_json(submission.paths.heartbeat)
        if heartbeat is None:
            return time.time() > submission.created_at + job.settings.gce.boot_minutes * 60
        if job.applier is None or job.applier.run_id != submission.run_id:
            job.applier = JournalApplier(
                storage,
                submission.paths,
                tracking_uri=submission.tracking_uri,
                run_id=submission.run_id,
            )
        job.applier.apply_new(patience=0)  # left to whoever is at it: another client, or the agent
        if not job.is_running and any(p["phase"] == "running" for p in heartbeat["phases"]):
            self._sweep.store.set_running(submission.run_id)
            job.is_running = True
        return False

    def exists(self, job: SweepJob) -> bool:
        assert job.submission is not None
        return self._compute.exists(job.submission.zone, job.submission.instance)

    def finish(self, job: SweepJob) -> tuple[Outcome, EndReason]:
        submission, settings = job.submission, job.settings
        assert submission is not None
        runner = GceSubmittedRun(submission, settings.endpoints, settings).runner(
            Console(quiet=True)
        )
        told: dict[str, Any] = {}
        try:
            result = _followed(runner)
            reason, problem = result.reason, result.message
        except GceBackendError as error:
            reason, problem = EndReason.RESULTS_UNVERIFIED, str(error)
            if isinstance(error, TrackingError) and self._is_done(job):
                reason, problem = EndReason.SUCCEEDED, ""
                self.warn(f"job {job.number} completed; {error}")
        try:
            told = read_result(self._sweep.storage, job.artifact_uri)
        except GceBackendError as error:
            problem = problem or f"what job {job.number} returned is not known: {error}"
        self.fetch(job)
        if reason is EndReason.SUCCEEDED and told.get("status") != "COMPLETED":
            problem = problem or f"run {submission.run_id} left no {RESULT}"
        seconds = time.time() - submission.created_at
        outcome = Outcome(submission.run_id, told, problem, seconds)
        self._sweep.note(job, outcome)
        job.is_spent = True
        job.applier = None
        return outcome, reason

    def _is_done(self, job: SweepJob) -> bool:
        """Whether all but telling the store is proven: success, its results, no instance."""
        assert job.submission is not None
        with contextlib.suppress(GceBackendError):
            end = proven_end(self._sweep.storage, job.submission.paths)
            return end is EndReason.SUCCEEDED and not self.exists(job)
        return False

    def fetch(self, job: SweepJob) -> None:
        """The job's files, to where they belong here; that they cannot be fetched is only said."""
        if job.output_dir is None:
            return
        try:
            kept = fetch_outputs(
                self._sweep.storage,
                job.artifact_uri,
                output_dir=job.output_dir,
                root=self._sweep.plan.root,
                bundled_at=self._sweep.bundled_at,
            )
        except (GceBackendError, *FETCH_ERRORS) as error:
            told = str(error) if isinstance(error, GceBackendError) else repr(error)
            self.warn(
                f"job {job.number}: its files are not in {job.output_dir}, or not all: {told}\n"
                "They are in the bucket, and how the job ended is not changed by this. To fetch "
                f"them:\n  mlflow-gce pull {job.run_id}"
            )
            return
        if kept:
            self.warn(f"job {job.number} wrote files that changed here meanwhile; kept: {kept}")

    def failed(self, job: SweepJob, error: BaseException) -> Outcome:
        if isinstance(error, (NoCapacity, QuotaExceeded)) and job.run_id:
            is_full = isinstance(error, NoCapacity)
            reason = EndReason.NO_CAPACITY if is_full else EndReason.QUOTA_EXCEEDED
            with contextlib.suppress(TrackingError):
                self._sweep.store.terminate(job.run_id, reason)
        told = str(error) if isinstance(error, GceBackendError) else repr(error)
        outcome = Outcome(job.run_id, {}, told)
        self._sweep.note(job, outcome)
        return outcome

    def submitted(self, job: SweepJob) -> Outcome:
        return Outcome(job.run_id, {"status": "SUBMITTED"})

    def abandon(self, job: SweepJob) -> None:
        self._sweep.table.rows[job.number].status = NOT_STARTED
        if job.run_id and not job.is_spent:  # its instance was to be asked for again
            with contextlib.suppress(TrackingError):
                self._sweep.store.terminate(job.run_id, EndReason.SUBMIT_FAILED)
            job.is_spent = True

    def warn(self, text: str) -> None:
        self._sweep.warn(text)

    def _create_run(self, job: SweepJob, common: Common, settings: Settings) -> str:
        sweep = self._sweep
        return sweep.store.create_child(
            common.experiment,
            sweep.parent_id,
            common.source,
            name=sweep.plan.name,
            run_name=job_name(job.number, job.overrides, sweep.plan.words),
            overrides=job.overrides,
            settings=settings,
            tags={
                JOB_TAG: job.key,
                NUMBER_TAG: str(job.number),
                OUTPUT_TAG: str(job.output_dir or ""),
            },
        )

    def _spec(
        self,
        job: SweepJob,
        common: Common,
        settings: Settings,
        tracking: dict[str, Any],
        paths: RunPaths,
    ) -> dict[str, Any]:
        sweep = self._sweep
        spec = run_spec(
            settings=settings,
            shipment=common.shipment,
            entry=EntryPoint(sweep.plan.name, COMMAND, {}, ()),
            environment=common.environment,
            tracking=tracking,
            run_id=job.run_id,
            attempt=ATTEMPT,
            deadline=time.time() + settings.gce.max_hours * 3600,
        )
        return {
            **spec,
            "place": str(sweep.plan.root),
            "job": {"object": paths.job, "sha256": hashlib.sha256(job.archive).hexdigest()},
            "env": {**spec["env"], **sweep.plan.env},
            "require": [RESULT, *spec["require"]],
        }


def _followed(runner: Any) -> Any:
    """The run's result, over further attempts: one that was taken back waits here for room."""
    for pause in (30.0, 60.0, 120.0, 300.0, 300.0, 300.0, 300.0):
        try:
            return runner.follow(Interrupts(active=False))
        except RunWaiting:
            time.sleep(pause)
    return runner.follow(Interrupts(active=False))
