"""A sweep: jobs, each on an instance of its own, under one parent run.

The same run spec, agent and proof of results as a single run's; what is different is that one
client has many of them. Whatever becomes of that client, the jobs that run end by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gce_backend.agent.paths import RUN_LABEL, RunPaths
from gce_backend.backend import GceSubmittedRun
from gce_backend.blueprint import Blueprint
from gce_backend.budget import within_cost
from gce_backend.bundle import make_bundle, size_warning
from gce_backend.compute import Compute
from gce_backend.config import Settings
from gce_backend.console import Console
from gce_backend.environment import Environment, read_environment
from gce_backend.errors import (
    ConfigError,
    GceBackendError,
    NoCapacity,
    QuotaExceeded,
    TrackingError,
)
from gce_backend.forwarding import forward_target, permitted
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import EndReason
from gce_backend.project import EntryPoint, Source, open_source
from gce_backend.request import ATTEMPT, InstanceRequest
from gce_backend.rest import Rest, compute_rest
from gce_backend.shipment import Shipment, run_spec, ship
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.sweep_capacity import Capacity, Quotas, free_quotas
from gce_backend.sweep_results import RESULT, Outcome, fetch_outputs, read_result
from gce_backend.sweep_schedule import Job, Scheduler
from gce_backend.sweep_store import (
    COMMAND,
    DIRECTORY_TAG,
    JOB_TAG,
    KEY_TAG,
    NUMBER_TAG,
    OUTPUT_TAG,
    SWEEP_TAG,
    Row,
    SweepStore,
    Table,
    put_table,
    summary_tags,
)
from gce_backend.sync import JournalApplier
from gce_backend.tracking import Experiment, resolve_uri


@dataclass
class SweepJob(Job):
    """A job with what it runs.

    Args:
        archive: ``job.pyz``; empty for one that an earlier client submitted.
        output_dir: where its files belong on this machine.
    """

    overrides: tuple[str, ...] = ()
    key: str = ""
    archive: bytes = b""
    output_dir: Path | None = None
    run_id: str = ""
    artifact_uri: str = ""
    is_running: bool = False


@dataclass(frozen=True)
class Plan:
    """What all jobs of a sweep share.

    Args:
        words: the overrides as they were written, `key=1,2,3`.
        digest: of the configuration that is swept over.
        resume: "auto", "never", or the id of a sweep to go on with.
        direction: "minimize" or "maximize" where it is known.
        env: plain variables for the jobs; never secret, they stand in the bucket.
    """

    name: str
    root: Path
    words: tuple[str, ...]
    digest: str
    directory: Path
    resume: str = "auto"
    direction: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    hydra_version: str = ""


@dataclass(frozen=True)
class Common:
    """What every job is made from, in the bucket and in the store."""

    source: Source
    environment: Environment
    experiment: Experiment
    shipment: Shipment


class Sweep:
    """One sweep of this process; `add` may be called from several threads.

    Args:
        settings: of the first job; where all of them go. Machines differ from job to job.
        say, warn: a line for the user.
        parent: the run of a sweep to follow without starting anything; None: the plan's own.

    Raises:
        GceBackendError: nothing was started.
    """

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        *,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        store: SweepStore | None = None,
        parent: Any = None,
    ) -> None:
        self.plan = plan
        self._say, self.warn = say, warn
        self._settings = settings
        self.store = store or SweepStore(resolve_uri(None))
        self.store_lock = threading.Lock()
        self.storage = Storage(settings.bucket, project=settings.project)
        self.bundled_at = time.time()
        self._earlier: dict[str, Any] = {}
        self.common: Common | None = None
        if parent is None:
            self.storage.check(settings.gce.prefix)
            self.common = self._prepare()
            parent = self._open_parent(self.common)
        self.parent_id = str(parent.info.run_id)
        self._parent_uri = str(parent.info.artifact_uri)
        self.table = Table()
        self.jobs = Jobs(self, settings)
        emulated = settings.endpoints.emulated
        self.scheduler = Scheduler(
            self.jobs,
            Capacity(quota_reader(settings)),
            max_parallel=settings.gce.max_parallel,
            pause=0.2 if emulated else 1.0,
            first_pause=0.5 if emulated else 5.0,
        )

    def add(self, job: SweepJob) -> Future[Outcome]:
        """Queue ``job``, unless an earlier client's has ended well, or still runs."""
        self.table.rows[job.number] = Row(
            job.number, list(job.overrides), job.settings.machine.name
        )
        earlier = self._earlier.pop(job.key, None)
        if earlier is not None and self._take_over(job, earlier):
            return job.future
        return self.scheduler.add(job)

    def leave(self) -> str:
        """Start nothing more; a sentence about what goes on."""
        running = self.scheduler.leave()
        self._write_table()
        names = ", ".join(str(job.number) for job in running) or "none"
        return (
            f"left sweep {self.parent_id}. Jobs that go on by themselves, and whose instances "
            f"delete themselves at the end: {names}. The same command goes on with the sweep; "
            f"to wait for those that run: mlflow-gce attach {self.parent_id}"
        )

    def reopen(self) -> None:
        """Further jobs come: the parent runs again."""
        self.store.reopen(self.parent_id)

    def close(self) -> None:
        """The jobs so far have ended: table and status of the parent say how."""
        rows = self.table.rows.values()
        if any(row.status == "RUNNING" for row in rows):
            self._write_table()  # left behind on purpose: the parent goes on
            return
        is_well = all(row.status == "COMPLETED" for row in rows)
        self._write_table()
        tags = summary_tags(self.table, self.plan.direction)
        self.store.close(self.parent_id, "FINISHED" if is_well else "FAILED", tags)

    def note(self, job: SweepJob, outcome: Outcome) -> None:
        """A job has ended: its row in the table, and a line for the user."""
        row = self.table.rows[job.number]
        row.run_id, row.seconds, row.attempts = outcome.run_id, outcome.seconds, job.attempts
        row.status = "COMPLETED" if outcome.completed else "FAILED"
        row.value = outcome.told.get("value") if outcome.completed else None
        row.error = outcome.problem.splitlines()[0] if outcome.problem else ""
        ended = sum(row.status != "RUNNING" for row in self.table.rows.values())
        how = f"completed: {row.value}" if outcome.completed else f"failed: {row.error}"
        took = "" if outcome.seconds is None else f" after {outcome.seconds:.1f} s"
        self._say(f"#{job.number} {how}{took} ({ended} of {len(self.table.rows)} have ended)")

    # -- before the first job -----------------------------------------------------------------

    def _prepare(self) -> Common:
        source, environment = _source(self.plan.root), _environment(self.plan)
        experiment = self.store.choose_experiment(
            self.store.experiment_named_by_environment(),
            project_name=_project_name(self.plan.root),
            settings=self._settings,
        )
        if experiment.notice:
            self._say(experiment.notice)
        return Common(source, environment, experiment, self._ship(environment))

    def _ship(self, environment: Environment) -> Shipment:
        with tempfile.TemporaryDirectory(prefix="mlflow-gce-") as scratch:
            bundle = make_bundle(self.plan.root, Path(scratch) / "bundle.tar.gz")
            if warning := size_warning(bundle):
                self.warn(warning)
            for secret in bundle.excluded_secrets:
                self.warn(f"{secret} looks like a secret and stays here; commit it to ship it")
            prefix = self._settings.gce.prefix
            return ship(self.storage, bundle, environment, prefix=prefix, scratch=Path(scratch))

    def _open_parent(self, common: Common) -> Any:
        plan, experiment = self.plan, common.experiment
        key = hashlib.sha256(
            json.dumps([plan.name, plan.digest, common.shipment.bundle.sha256]).encode()
        ).hexdigest()[:32]
        found = None
        if plan.resume == "auto":
            found = self.store.unfinished(experiment.experiment_id, key)
        elif plan.resume != "never":
            found = self.store.find_run(plan.resume)
            if KEY_TAG not in found.data.tags:
                raise ConfigError(f"hydra.launcher.resume={plan.resume}: that run is no sweep")
        tags = {KEY_TAG: key, SWEEP_TAG: plan.name, DIRECTORY_TAG: str(plan.directory)}
        if found is None:
            tags["mlflow.source.name"] = common.source.name
            made = self.store.create_parent(experiment, f"sweep-{plan.name}", tags, plan.words)
            self._say(f"sweep {made.info.run_id} in experiment {experiment.name!r}")
            return made
        parent = str(found.info.run_id)
        for run in self.store.children(experiment.experiment_id, parent):
            self._remember(run)
        self.store.set_tags(parent, tags)
        self.store.reopen(parent)
        finished = sum(run.info.status == "FINISHED" for run in self._earlier.values())
        self._say(f"sweep {parent} goes on: {finished} jobs are finished (a new one: resume=never)")
        return found

    def _remember(self, run: Any) -> None:
        """An earlier child; of several for the same job the one that is furthest."""
        key = run.data.tags.get(JOB_TAG, "")
        order = ("FINISHED", "RUNNING", "SCHEDULED")
        if run.info.status not in order:
            return
        known = self._earlier.get(key)
        if known is None or order.index(run.info.status) < order.index(known.info.status):
            self._earlier[key] = run

    def _take_over(self, job: SweepJob, run: Any) -> bool:
        """Whether the earlier client's run stands for ``job``: ended well, or on its way."""
        job.run_id, job.artifact_uri = run.info.run_id, str(run.info.artifact_uri)
        if run.info.status == "FINISHED":
            told = read_result(self.storage, job.artifact_uri)
            if told.get("status") == "COMPLETED":
                outcome = Outcome(job.run_id, told)
                self.jobs.fetch(job)
                self.note(job, outcome)
                job.future.set_result(outcome)
                return True
        else:
            with contextlib.suppress(TrackingError):
                job.adopted = Submission.from_run(run, self.store.uri)
                self.scheduler.add(job)
                return True
            self.store.terminate(job.run_id, EndReason.SUBMIT_FAILED)
        job.run_id, job.artifact_uri = "", ""
        return False

    def _write_table(self) -> None:
        try:
            put_table(self.storage, self._parent_uri, self.table, self.plan.words)
        except GceBackendError as error:
            self.warn(f"the sweep's table is not in the bucket: {error}")


class Jobs:
    """What is done for each job: ``sweep_schedule.JobWork`` on the cloud."""

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
        sweep = self._sweep
        try:
            forward = forward_target(sweep._store.uri, settings)
            settings = permitted(settings, forward)
            with sweep._store_lock:
                if not job.run_id:
                    job.run_id = self._create_run(job, settings)
                tracking = sweep._store.spec(sweep._experiment, job.run_id)
                tracking["forward"] = forward
            job.artifact_uri = str(tracking["run"]["info"]["artifact_uri"])
            paths = RunPaths(settings.gce.prefix, job.run_id)
            sweep._storage.put(paths.job, job.archive)
            sweep._storage.put_json(paths.spec, self._spec(job, settings, tracking, paths))
            return InstanceRequest(
                settings,
                sweep._shipment.agent,
                paths,
                sweep._store,
                Console(quiet=True),
                Interrupts(active=False),
            ).in_first_zone_with_room()
        except (NoCapacity, QuotaExceeded):
            raise  # asked for again, for the same run
        except BaseException:
            if job.run_id:
                with contextlib.suppress(TrackingError):
                    sweep._store.terminate(job.run_id, EndReason.SUBMIT_FAILED)
            raise

    def look(self, job: SweepJob) -> bool:
        storage, submission = self._sweep.storage, job.submission
        assert submission is not None
        if storage.exists(submission.paths.status):
            return True
        heartbeat = storage.read_json(submission.paths.heartbeat)
        if heartbeat is None:
            return time.time() > submission.created_at + job.settings.gce.boot_minutes * 60
        JournalApplier(
            storage,
            submission.paths,
            tracking_uri=submission.tracking_uri,
            run_id=submission.run_id,
        ).apply_new()
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
        with contextlib.suppress(GceBackendError):
            told = read_result(self._sweep.storage, job.artifact_uri)
            self.fetch(job)
        if reason is EndReason.SUCCEEDED and told.get("status") != "COMPLETED":
            problem = f"run {submission.run_id} left no {RESULT}"
        seconds = time.time() - submission.created_at
        outcome = Outcome(submission.run_id, told, problem, seconds)
        self._sweep.note(job, outcome)
        job.run_id = ""  # a further attempt is a further run
        return outcome, reason

    def fetch(self, job: SweepJob) -> None:
        """The job's files, to where they belong here."""
        if job.output_dir is None:
            return
        plan = self._sweep.plan
        kept = fetch_outputs(
            self._sweep.storage,
            job.artifact_uri,
            output_dir=job.output_dir,
            root=plan.root,
            bundled_at=self._sweep.bundled_at,
        )
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

    def warn(self, text: str) -> None:
        self._sweep.warn(text)

    def _create_run(self, job: SweepJob, common: Common, settings: Settings) -> str:
        sweep = self._sweep
        return sweep.store.create_child(
            common.experiment,
            sweep.parent_id,
            common.source,
            name=sweep.plan.name,
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


def quota_reader(settings: Settings) -> Callable[[str], Quotas]:
    """What a region's quotas leave, asked from Compute Engine."""
    rest: Rest = compute_rest(settings.endpoints.compute)

    def read(region: str) -> Quotas:
        path = f"projects/{settings.project}/regions/{region}"
        return free_quotas(rest.get(f"reading the quotas of {region}", path))

    return read


def _followed(runner: Any) -> Any:
    """The run's result, over further attempts: one that was taken back waits here for room."""
    for pause in (30.0, 60.0, 120.0, 300.0, 300.0, 300.0, 300.0):
        try:
            return runner.follow(Interrupts(active=False))
        except RunWaiting:
            time.sleep(pause)
    return runner.follow(Interrupts(active=False))


def _source(root: Path) -> Source:
    with open_source(str(root), None) as source:
        return source


def _project_name(root: Path) -> str:
    from mlflow.projects.utils import load_project

    return str(load_project(str(root)).name or root.name)


def _environment(plan: Plan) -> Environment:
    """The project's environment, with Hydra where the project does not ask for it itself."""
    environment = read_environment(plan.root, None)
    named = " ".join(environment.requirements)
    if "hydra-core" not in named:
        environment.requirements.append(f"hydra-core=={plan.hydra_version}")
    return environment
