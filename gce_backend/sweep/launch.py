"""Hydra's side of a sweep: jobs composed here, and ``JobReturn`` as its own launchers give it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import (
    JobReturn,
    JobStatus,
    configure_log,
    filter_overrides,
    setup_globals,
)
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict, read_write

from gce_backend.compose import Composer
from gce_backend.config import Settings, read_endpoints, settings_of
from gce_backend.errors import ConfigError, GceBackendError
from gce_backend.sweep.checks import (
    TypeChecks,
    check_leaving,
    check_money,
    check_options,
    check_place,
    named,
    refuse_secrets,
    warn_of_variables,
)
from gce_backend.sweep.errors import SweepFailed, in_hydras_words, rebuilt
from gce_backend.sweep.jobs import Plan, SweepJob
from gce_backend.sweep.payload import Task, describe_task, job_archive
from gce_backend.sweep.results import Outcome
from gce_backend.sweep.store import job_key
from gce_backend.sweep.sweep import Sweep

log = logging.getLogger(__name__)

_MARK_OF = {"machine": "machine_type", "gce": "bucket"}  # a key by which the node is ours
_MARKS = ("MLproject", ".git", "pyproject.toml")


class Submitted(JobReturn):  # type: ignore[misc]
    """A job that goes on by itself: nothing is known of its result."""

    @property
    def return_value(self) -> Any:
        return None

    @return_value.setter
    def return_value(self, value: Any) -> None:
        raise AttributeError("nothing is known of this job's result")


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run a batch of jobs, or with ``wait=false`` ask for their instances.

    Args:
        launcher: the plugin's object: its options, what Hydra gave it, and the sweep it keeps.

    Raises:
        SweepFailed: nothing was started, or the client broke; the log says then what goes on. A
            job's own failure is in its JobReturn.
    """
    setup_globals()
    config = launcher.config
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    directory = Path(str(config.hydra.sweep.dir))
    directory.mkdir(parents=True, exist_ok=True)
    log.info(f"Launching {len(job_overrides)} jobs on Compute Engine")
    try:
        return _Batch(launcher, directory.absolute()).run(job_overrides, first)
    except GceBackendError as error:
        told = in_hydras_words(str(error), own_nodes=_has_own(config, "gce"))
        raise SweepFailed(f"mlflow-gce: {told}") from error
    finally:
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)


class _Batch:
    def __init__(self, launcher: Any, directory: Path) -> None:
        self._launcher = launcher
        self._config: DictConfig = launcher.config
        self._options = launcher.options
        self._directory = directory
        self._endpoints = read_endpoints()
        self._task = describe_task(launcher.task_function, _root(self._options["project"]))
        self._types = TypeChecks(launcher.hydra_context.config_loader, launcher.config)
        self._defaults: DictConfig | None = None

    def run(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        composed = self._all_composed(job_overrides, first)
        if not composed:
            return []
        sweep = self._sweep(composed[0][1].settings)
        try:
            pending = [(config, job, sweep.add(job)) for config, job in composed]
            returns = [self._returned(c, job, _wait(future)) for c, job, future in pending]
        except CancelledError:
            raise  # another thread's batch has left the sweep, and said so
        except BaseException:
            self._launcher.sweep = None  # it starts nothing more: a further batch takes it up anew
            log.warning(sweep.leave())
            raise
        sweep.close()
        if not self._options["wait"]:
            log.info(f"left; to wait for the jobs: mlflow-gce attach {sweep.parent_id}")
        return returns

    def _all_composed(
        self, job_overrides: Sequence[Sequence[str]], first: int
    ) -> list[tuple[DictConfig, SweepJob]]:
        """Every job of the batch, proven to be possible before the first one costs anything.

        Raises:
            ConfigError: naming the job; nothing of this batch was started.
        """
        try:
            check_options(self._options)
            refuse_secrets("hydra.job.env_copy", self._config.hydra.job.env_copy)
            refuse_secrets("hydra.launcher.env", self._options["env"] or {})
            composed = [self._composed(n, words) for n, words in enumerate(job_overrides, first)]
            jobs = [job for _, job in composed]
            check_place(jobs)
            if jobs and not self._options["wait"]:
                check_leaving(self._config, jobs)
        except ConfigError as error:
            what = "Nothing" if self._launcher.sweep is None else "Nothing of this batch"
            raise ConfigError(f"{error}\n{what} was started") from error
        return composed

    def _composed(self, number: int, overrides: Sequence[str]) -> tuple[DictConfig, SweepJob]:
        with self._launcher.lock:  # Hydra's and the resolvers' state is global
            config = self._compose(number, overrides)
            try:
                return config, self._job(number, overrides, config)
            except ConfigError as error:
                told = f"{named(number, filter_overrides(overrides))}: {error}"
                raise ConfigError(told) from error

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
        loader = self._launcher.hydra_context.config_loader
        composed: DictConfig = loader.load_sweep_config(self._config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id = f"job_id_for_{number}"
            composed.hydra.job.num = number
        callbacks = composed.hydra.callbacks
        for name in [n for n, c in callbacks.items() if "hydra_gce_launcher" in str(c)]:
            with flag_override(callbacks, ["readonly", "struct"], False):
                del callbacks[name]
        return composed

    def _job(self, number: int, overrides: Sequence[str], composed: DictConfig) -> SweepJob:
        given = tuple(filter_overrides(overrides))
        self._types.check(given, composed)
        settings = self._settings(composed)
        check_money(settings)
        HydraConfig.instance().set_config(composed)
        subdir = str(OmegaConf.select(composed, "hydra.sweep.subdir"))
        output_dir = (self._directory / subdir).absolute()
        with read_write(composed.hydra.runtime), open_dict(composed.hydra.runtime):
            composed.hydra.runtime.output_dir = os.path.normpath(output_dir)
        return SweepJob(
            number,
            settings,
            detached=not self._options["wait"],
            overrides=given,
            key=job_key(given),
            archive=job_archive(self._task, composed),
            output_dir=output_dir,
        )

    def _settings(self, composed: DictConfig) -> Settings:
        """The job's own ``machine`` and ``gce`` nodes, or the launcher's where it has none."""
        if self._defaults is None:
            words = [f"machine={self._options['machine']}"]
            self._defaults = Composer(Path(os.devnull)).compose(words)
        nodes = {}
        for name in _MARK_OF:
            node = composed[name] if _has_own(composed, name) else self._defaults[name]
            nodes[name] = OmegaConf.to_container(node, resolve=True)
        config = OmegaConf.create(nodes)
        given = OmegaConf.create({"gce": self._options["gce"] or {}})
        merged = OmegaConf.merge(config, given)
        assert isinstance(merged, DictConfig)
        return settings_of(merged, self._endpoints)

    def _sweep(self, settings: Settings) -> Sweep:
        with self._launcher.lock:
            if self._launcher.sweep is None:
                warn_of_variables(self._config)
                self._launcher.sweep = Sweep(
                    self._plan(),
                    settings,
                    say=self._told_by(log.info),
                    warn=self._told_by(log.warning),
                )
            else:
                self._launcher.sweep.reopen()
            sweep: Sweep = self._launcher.sweep
            return sweep

    def _told_by(self, tell: Callable[[str], None]) -> Callable[[str], None]:
        own_nodes = _has_own(self._config, "gce")
        return lambda text: tell(in_hydras_words(text, own_nodes=own_nodes))

    def _plan(self) -> Plan:
        words = tuple(str(word) for word in self._config.hydra.overrides.task)
        own = OmegaConf.to_container(self._config, resolve=False)
        assert isinstance(own, dict)
        own.pop("hydra", None)
        parts = json.dumps([words, own], sort_keys=True, default=str)
        return Plan(
            name=str(self._config.hydra.job.name),
            root=self._task.root,
            words=words,
            digest=hashlib.sha256(parts.encode()).hexdigest(),
            directory=self._directory,
            resume=str(self._options["resume"]),
            direction=self._direction(),
            register=self._options["register"],
            env={str(k): str(v) for k, v in (self._options["env"] or {}).items()},
            hydra_version=hydra.__version__,
        )

    def _direction(self) -> str | None:
        given = self._options["direction"] or self._config.hydra.sweeper.get("direction")
        name = str(getattr(given, "name", given))  # the Optuna sweeper has an enum, or a list
        return name if name in ("minimize", "maximize") else None

    def _returned(self, composed: DictConfig, job: SweepJob, outcome: Outcome) -> JobReturn:
        """What Hydra's own launchers return for a job that ended so."""
        is_left = outcome.told.get("status") == "SUBMITTED"
        returned = Submitted() if is_left else JobReturn()
        returned.overrides = [str(word) for word in composed.hydra.overrides.task]
        returned.hydra_cfg = OmegaConf.masked_copy(composed, "hydra")
        own = composed.copy()
        with read_write(own), open_dict(own):
            del own["hydra"]
        returned.cfg = own
        told = outcome.told
        returned.task_name = told.get("task_name") or str(composed.hydra.job.name)
        returned.working_dir = _here(told.get("working_dir"), job, self._task)
        if is_left:
            return returned
        if outcome.completed:
            returned.status, returned.return_value = JobStatus.COMPLETED, told.get("value")
            if not told.get("exact", True):
                log.warning(f"job {job.number} returned no plain data; this is its text")
        else:
            returned.status, returned.return_value = JobStatus.FAILED, self._error(outcome)
        return returned

    def _error(self, outcome: Outcome) -> BaseException:
        """The task's own exception, or what became of the job instead."""
        described = outcome.told.get("error")
        if described:
            error = rebuilt(described)
            error.add_note(f"MLflow run {outcome.run_id}")
            return error
        code = outcome.told.get("exit_code")
        why = f"the job ended with exit code {code} before its function returned. " if code else ""
        told = in_hydras_words(outcome.problem, own_nodes=_has_own(self._config, "gce"))
        return SweepFailed(f"{why}{told}")


def _has_own(config: DictConfig, name: str) -> bool:
    """Whether the program's configuration has this node, and for this backend."""
    own = config.get(name)
    return isinstance(own, DictConfig) and _MARK_OF[name] in own


def _here(there: str | None, job: SweepJob, task: Task) -> str:
    """The job's working directory by its name on this machine."""
    if there and not Path(there).is_dir() and job.output_dir is not None:
        return str(job.output_dir)
    return there or str(task.cwd)


def _wait(future: Future[Outcome]) -> Outcome:
    """The result; Ctrl-C is heard meanwhile. A job's end is the scheduler's business."""
    while True:
        try:
            return future.result(timeout=0.5)
        except NotYet:
            continue


def _root(configured: str | None) -> Path:
    """The project around the program: the closest directory with a project's mark, or its own."""
    if configured:
        root = Path(configured).absolute()
        if not root.is_dir():
            raise ConfigError(f"hydra.launcher.project={configured}: there is no such directory")
        return root
    cwd = Path.cwd()
    file = getattr(sys.modules["__main__"], "__file__", None)
    start = Path(file).resolve().parent if file else cwd
    if not cwd.is_relative_to(start) and not start.is_relative_to(cwd):
        start = cwd
    for directory in (start, *start.parents):
        if directory == Path.home():
            break  # somebody's dotfiles in git are no project
        if any((directory / mark).exists() for mark in _MARKS):
            return directory
    return start
