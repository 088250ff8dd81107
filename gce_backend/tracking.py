"""The MLflow side of a run: an experiment an instance can write to, and the run itself.

Not here: what the training logs (``sync.py`` applies it).
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gce_backend.compose import first_line
from gce_backend.config import Settings
from gce_backend.errors import TrackingError
from gce_backend.lifecycle import OUTCOME, EndReason
from gce_backend.presence import this_client
from gce_backend.project import EntryPoint, Source
from gce_backend.run_store import BUSY, SQLITE, brief_retries, turn
from gce_backend.urls import without_credentials

_DEFAULT_EXPERIMENT = "0"
_PARAM_NAME = re.compile(r"^[\w\-. /:]+$")
_MAX_PARAM_LENGTH = 6000
_RUN_ID_LENGTH = 32
_HEX = re.compile("[0-9a-f]+")
_CANDIDATES_SHOWN = 10
_MAX_TAG_LENGTH = 5000
_MAX_PARAMS = 100  # of one batch

# Tags through which a later command finds a run's instance and its files.
RUN_URI_TAG = "gce.run"
PROJECT_TAG, ZONE_TAG, INSTANCE_TAG = "gce.project", "gce.zone", "gce.instance"
DEADLINE_TAG = "gce.deadline"
END_REASON_TAG = "gce.end_reason"
CLIENT_TAG = "gce.client"  # who submits the run, see presence.py
MAY_BILL_TAG = "gce.may_bill"  # an instance that could not be deleted after a failed submission


@dataclass(frozen=True)
class Experiment:
    """Where the run goes. ``notice``: what the user should be told about the choice."""

    experiment_id: str
    name: str
    location: str
    notice: str | None = None


P = ParamSpec("P")
T = TypeVar("T")


def _answering(method: Callable[P, T]) -> Callable[P, T]:
    """Tell what MLflow raises in our terms, and within 20 s: its client would try for minutes."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        from mlflow.exceptions import MlflowException

        try:
            with brief_retries(), turn():
                return method(*args, **kwargs)
        except MlflowException as error:
            store = without_credentials(args[0].uri)  # type: ignore[attr-defined]
            raised = TrackingError(
                f"the tracking store {store} answered: {without_credentials(error.message)}"
            )
            status = int(error.get_http_status_code())
            raised.transient = status >= 500 or status in BUSY
            raise raised from error

    return call


class Tracking:
    """One MLflow store. Every method raises TrackingError when the store refuses or is away.

    Args:
        uri: as MLflow resolved it; both sqlite files and servers work.
    """

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.uri = uri
        cannot = f"the tracking store {without_credentials(uri)} cannot be opened"
        if why := _no_sqlite_file(uri):
            raise TrackingError(f"{cannot}: {why}. Set MLFLOW_TRACKING_URI, or --tracking-uri")
        try:
            self._client = MlflowClient(tracking_uri=uri)
        except Exception as error:  # MLflow lets through what its drivers raise, and their absence
            said = without_credentials(getattr(error, "message", None) or first_line(error))
            advice = ". Install this database's driver" if isinstance(error, ImportError) else ""
            raise TrackingError(f"{cannot}: {said.strip()}{advice}") from error

    @_answering
    def choose_experiment(
        self, experiment_id: str, *, project_name: str, settings: Settings
    ) -> Experiment:
        """The experiment for a run: its artifacts must lie in ``gs://``, where instances can write.

        MLflow's default experiment stands for "none was named": one named after the project takes
        its place. A named one without any run is set aside and made anew; a location cannot be
        changed, and MLflow's command line creates the experiment before a backend is asked.

        Raises:
            TrackingError: a named experiment has runs, and another location than ``gs://``.
        """
        experiment = self._client.get_experiment(experiment_id)
        if experiment.artifact_location.startswith("gs://"):
            return _of(experiment)
        if experiment_id == _DEFAULT_EXPERIMENT:
            found = self._client.get_experiment_by_name(project_name)
            if found is None:
                return self._create(project_name, settings, "no experiment was named")
            if found.lifecycle_stage != "active":
                raise TrackingError(
                    f"experiment {project_name!r} is deleted. Run: mlflow experiments restore "
                    f"--experiment-id {found.experiment_id}, or name one: --experiment-name NAME"
                )
            if found.artifact_location.startswith("gs://"):
                return _of(found)
            experiment = found
        if self._has_runs(experiment.experiment_id):
            raise TrackingError(self._wrong_location(experiment, settings))
        aside = f"{experiment.name} (local, {experiment.experiment_id})"
        self._client.rename_experiment(experiment.experiment_id, aside)
        return self._create(
            experiment.name,
            settings,
            f"its empty namesake with location {experiment.artifact_location} is now {aside!r}",
        )

    @_answering
    def create_run(
        self,
        experiment: Experiment,
        source: Source,
        entry: EntryPoint,
        *,
        settings: Settings,
        backend_parameters: Mapping[str, str],
        run_name: str | None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Create the run with everything known before it starts; return its id.

        Parameters are stored as given: MLflow stores them shell-quoted, and a trainer that logs the
        same value itself then fails on the difference.
        """
        run = self._client.create_run(
            experiment.experiment_id,
            run_name=run_name,
            tags={**_tags(source, entry, settings), **(tags or {})},
        )
        run_id: str = run.info.run_id
        try:
            self._describe(run_id, {**backend_parameters, **entry.parameters}, settings)
        except BaseException:
            # Nobody else knows of this run yet.
            self._client.set_terminated(run_id, "FAILED")
            raise
        return run_id

    def _describe(self, run_id: str, given: Mapping[str, str], settings: Settings) -> None:
        """Log the parameters, and show that the run waits for its instance."""
        from mlflow.entities import Param, RunTag

        parameters = {"machine": settings.machine.name, **given}
        kept = {key: value for key, value in parameters.items() if _PARAM_NAME.match(key)}
        dropped = [RunTag("gce.parameters", json.dumps(parameters))] if kept != parameters else []
        params = [Param(k, _canonical(v)[:_MAX_PARAM_LENGTH]) for k, v in kept.items()]
        for first in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + _MAX_PARAMS])
        if dropped:
            self._client.log_batch(run_id, tags=dropped)
        self._client.update_run(run_id, status="SCHEDULED")

    @_answering
    def spec(self, experiment: Experiment, run_id: str) -> dict[str, Any]:
        """What the relay on the instance must know of the store, as MLflow's REST API shows it."""
        from mlflow.utils.proto_json_utils import message_to_json

        run = self._client.get_run(run_id)
        found = self._client.get_experiment(experiment.experiment_id)
        return {
            "experiment_id": experiment.experiment_id,
            "experiment": json.loads(message_to_json(found.to_proto())),
            "run": json.loads(message_to_json(run.to_proto())),
        }

    @_answering
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    @_answering
    def log_metrics(
        self, run_id: str, metrics: Mapping[str, float], *, step: int, at_ms: int
    ) -> None:
        """Log one point each; the same again changes nothing. ``at_ms``: unix milliseconds."""
        from mlflow.entities import Metric

        points = [Metric(key, value, at_ms, step) for key, value in metrics.items()]
        self._client.log_batch(run_id, metrics=points)

    @_answering
    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of every point."""
        return [(m.step, m.value) for m in self._client.get_metric_history(run_id, key)]

    @_answering
    def delete_tag(self, run_id: str, key: str) -> None:
        self._client.delete_tag(run_id, key)

    @_answering
    def set_running(self, run_id: str) -> None:
        self._client.update_run(run_id, status="RUNNING")

    @_answering
    def terminate(self, run_id: str, reason: EndReason, *, at: float | None = None) -> None:
        """Write how the run ended: status and reason. ``at``: unix seconds, now by default."""
        self.set_tags(run_id, {END_REASON_TAG: reason.value})
        end_time = round((at or time.time()) * 1000)
        self._client.set_terminated(run_id, OUTCOME[reason].mlflow_status, end_time)

    @_answering
    def status(self, run_id: str) -> str:
        return str(self._client.get_run(run_id).info.status)

    @_answering
    def get_run(self, run_id: str) -> Any:
        return self._client.get_run(run_id)

    @_answering
    def find_run(self, wanted: str) -> Any:
        """The run with this id; else the only one of this backend whose id begins so, or that has
        this name.

        Raises:
            TrackingError: there is none, or more than one; the message lists them.
        """
        if len(wanted) == _RUN_ID_LENGTH and _HEX.fullmatch(wanted):
            return self._client.get_run(wanted)
        quote = "'" if '"' in wanted else '"'
        # MLflow's filters have no way to write a text with both marks in it.
        found = (
            [] if quote in wanted else self._ours(f"attributes.run_name = {quote}{wanted}{quote}")
        )
        if _HEX.fullmatch(wanted):
            begin = self._ours(f"tags.`{INSTANCE_TAG}` LIKE '%-{wanted}%'")
            named = {run.info.run_id for run in found}
            found += [
                run
                for run in begin
                if run.info.run_id.startswith(wanted) and run.info.run_id not in named
            ]
        return _one_of(found, wanted, without_credentials(self.uri))

    @_answering
    def runs(self, count: int, *, since: float | None = None) -> list[Any]:
        """The latest runs of this backend, in all experiments, the latest first.

        Args:
            since: unix seconds; only those started later.
        """
        later = f" AND attributes.start_time > {round(since * 1000)}" if since else ""
        return self._ours(f"tags.`{INSTANCE_TAG}` LIKE '%'{later}", count)

    @_answering
    def open_runs(self) -> list[Any]:
        """Runs of this backend whose end, or whose proven end, is not written yet."""
        unproven = EndReason.RESULTS_UNVERIFIED.value
        return [
            run
            for which in (
                "attributes.status = 'RUNNING'",
                "attributes.status = 'SCHEDULED'",
                f"tags.`{END_REASON_TAG}` = '{unproven}'",
            )
            for run in self._ours(which)
        ]

    def _ours(self, which: str, count: int = 1000) -> list[Any]:
        from mlflow.entities import ViewType

        experiments = [e.experiment_id for e in self._client.search_experiments(ViewType.ALL)]
        found = self._client.search_runs(
            experiments, which, ViewType.ALL, count, ["attributes.start_time DESC"]
        )
        return [run for run in found if INSTANCE_TAG in run.data.tags]

    def _create(self, name: str, settings: Settings, why: str) -> Experiment:
        location = _location(name, settings)
        experiment_id = self._client.create_experiment(name, artifact_location=location)
        notice = f"experiment {name!r} created, artifacts in {location} ({why})"
        return Experiment(experiment_id, name, location, notice)

    def _has_runs(self, experiment_id: str) -> bool:
        from mlflow.entities import ViewType

        return bool(
            self._client.search_runs([experiment_id], run_view_type=ViewType.ALL, max_results=1)
        )

    def _wrong_location(self, experiment: Any, settings: Settings) -> str:
        name = f"{experiment.name}-gce"
        return (
            f"experiment {experiment.name!r} keeps its artifacts in "
            f"{experiment.artifact_location}, where no instance can write, and has runs, so it "
            "stays as it is. No instance was created. Run:\n"
            f"  mlflow experiments create -n {name!r} -l {_location(name, settings)}\n"
            f"and then add: --experiment-name {name!r}"
        )


def _no_sqlite_file(uri: str) -> str:
    """Why there can be no database at the URI's path, "" where there can: MLflow would find out in
    two minutes, and print each of its tries."""
    match = SQLITE.fullmatch(uri)
    if match is None:
        return ""
    path = Path(match[1])
    if path.is_dir():
        return f"{path} is a directory"
    if path.is_file():
        return ""  # to be read at least, wherever it lies
    parent = next(each for each in path.absolute().parents if each.exists())
    return "" if parent.is_dir() and os.access(parent, os.W_OK) else f"{parent} cannot be written"


def resolve_uri(uri: str | None) -> str:
    """``uri``, or the store that MLflow itself would use here."""
    import mlflow

    return uri or str(mlflow.get_tracking_uri())


def _one_of(found: list[Any], wanted: str, store: str) -> Any:
    if len(found) == 1:
        return found[0]
    if not found:
        raise TrackingError(
            f"store {store}: no run of this backend has the id or name {wanted!r}, or an id that "
            "begins so. See: mlflow-gce ps --all"
        )
    lines = "\n".join(
        f"  {run.info.run_id}  {run.info.run_name}  {run.info.status}"
        for run in found[:_CANDIDATES_SHOWN]
    )
    more = len(found) - _CANDIDATES_SHOWN
    raise TrackingError(
        f"store {store}: {len(found)} runs of this backend are called {wanted!r}, or have an id "
        f"that begins so. Say which:\n{lines}{f'{chr(10)}  and {more} more' if more > 0 else ''}"
    )


def _of(experiment: Any) -> Experiment:
    return Experiment(
        str(experiment.experiment_id), str(experiment.name), str(experiment.artifact_location)
    )


def _location(name: str, settings: Settings) -> str:
    folder = re.sub(r"[^\w.-]+", "-", name)
    return f"gs://{settings.bucket}/{settings.gce.prefix}/experiments/{folder}"


def _canonical(value: str) -> str:
    """Numbers in one spelling, so that runs with ``1e-3`` and ``0.001`` compare as equal."""
    try:
        number = float(value)
    except ValueError:
        return value
    return str(int(value)) if value.lstrip("+-").isdecimal() else str(number)


def _tags(source: Source, entry: EntryPoint, settings: Settings) -> dict[str, str]:
    from mlflow.tracking import fluent
    from mlflow.tracking.context.default_context import _get_user
    from mlflow.utils import mlflow_tags

    parent = fluent.active_run()
    tags = {
        mlflow_tags.MLFLOW_USER: _get_user(),
        mlflow_tags.MLFLOW_SOURCE_NAME: source.name,
        mlflow_tags.MLFLOW_SOURCE_TYPE: "PROJECT",
        mlflow_tags.MLFLOW_PROJECT_ENTRY_POINT: entry.name,
        mlflow_tags.MLFLOW_PROJECT_BACKEND: "gce",
        mlflow_tags.MLFLOW_GIT_COMMIT: source.commit,
        mlflow_tags.MLFLOW_GIT_REPO_URL: source.repository,
        mlflow_tags.MLFLOW_GIT_BRANCH: source.branch,
        mlflow_tags.MLFLOW_PARENT_RUN_ID: parent.info.run_id if parent else None,
        "gce.git.dirty": str(source.dirty).lower() if source.commit else None,
        "gce.command": entry.command[:_MAX_TAG_LENGTH],
        "gce.image": settings.machine.image,  # the instance tells later which one it was
        "gce.machine_type": settings.machine.machine_type,
        "gce.spot": str(settings.machine.spot).lower(),
        CLIENT_TAG: this_client(),
        PROJECT_TAG: settings.project,
    }
    return {key: value for key, value in tags.items() if value is not None}
