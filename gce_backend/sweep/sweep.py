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
from pathlib import Path
from typing import Any

from gce_backend.bundle import make_bundle, size_warning
from gce_backend.config import Settings
from gce_backend.environment import Environment, read_environment
from gce_backend.errors import (
    ConfigError,
    GceBackendError,
    TrackingError,
)
from gce_backend.lifecycle import EndReason
from gce_backend.presence import this_client
from gce_backend.project import Source, open_source
from gce_backend.shipment import Shipment, ship
from gce_backend.storage import Storage
from gce_backend.submission import Submission, close_abandoned
from gce_backend.submit import check_bucket
from gce_backend.sweep.capacity import Capacity, quota_reader
from gce_backend.sweep.jobs import Common, Jobs, Plan, SweepJob
from gce_backend.sweep.results import Outcome, read_result
from gce_backend.sweep.schedule import Scheduler
from gce_backend.sweep.store import (
    DIRECTORY_TAG,
    JOB_TAG,
    KEY_TAG,
    SWEEP_TAG,
    SWEEPER_TAG,
    Row,
    SweepStore,
    Table,
    put_table,
    summary_tags,
)
from gce_backend.tracking import resolve_uri


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
        self.jobs = Jobs(self, settings)
        capacity = Capacity(quota_reader(settings))
        if parent is None:
            check_bucket(self.storage, settings.gce.prefix)
            self.common = self._prepare()
            parent = self._open_parent(self.common)
        self.parent_id = str(parent.info.run_id)
        self._parent_uri = str(parent.info.artifact_uri)
        self.table = Table()
        emulated = settings.endpoints.emulated
        self.scheduler = Scheduler(
            self.jobs,
            capacity,
            max_parallel=settings.gce.max_parallel,
            pause=0.5 if emulated else 1.0,
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
        """Start nothing more; a sentence about what goes on. Where nothing does, it is closed."""
        going = self.scheduler.leave()
        self._write_table()
        if not going:
            self._close_parent("FAILED", {})
            return (
                f"left sweep {self.parent_id}: none of its jobs runs. The same command goes on "
                "with it"
            )
        names = ", ".join(str(job.number) for job in going)
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
        self._close_parent("FINISHED" if is_well else "FAILED", tags)
        if name := self.plan.register:
            self._register_best(name, tags.get("gce.sweep.best_run"))

    def _close_parent(self, status: str, tags: dict[str, str]) -> None:
        try:
            self.store.close(self.parent_id, status, tags)
        except TrackingError as error:
            self.warn(f"MLflow does not know yet how the sweep ended: {error}")

    def _register_best(self, name: str, run_id: str | None) -> None:
        """Done here: instances have no way to the registry. What fails is said, and no more."""
        if run_id is None:
            self.warn(
                f"no model is registered as {name!r}: which job is the best is not known. "
                "hydra.launcher.direction=maximize (or minimize) tells it by what jobs return"
            )
            return
        try:
            version = self.store.register_best(run_id, name)
        except TrackingError as error:
            self.warn(f"the best job's model, of run {run_id}, is not registered: {error}")
            return
        if version is None:
            self.warn(
                f"no model is registered as {name!r}: the best job, run {run_id}, logged none"
            )
        else:
            self._say(f"the best job's model is version {version} of {name!r}: models:/{name}@best")

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
            archive = Path(scratch) / "bundle.tar.gz"
            bundle = make_bundle(self.plan.root, archive, without=self.plan.directory)
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
        tags[SWEEPER_TAG] = this_client()
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
        if run.info.status not in order or close_abandoned(self.store, run):
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
