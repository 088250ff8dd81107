"""A sweep in the tracking store: one parent run, a child run a job, and the table of them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gce_backend.config import Settings
from gce_backend.project import EntryPoint, Source
from gce_backend.storage import Storage, parse_uri
from gce_backend.tracking import Experiment, Tracking, _answering

SWEEP_TAG = "gce.sweep"  # of the parent: how it was asked for; of a child: the parent's id
KEY_TAG = "gce.sweep.key"  # of the parent: what is swept over which code
JOB_TAG = "gce.sweep.job"  # of a child: the digest of its overrides
NUMBER_TAG = "gce.sweep.number"
DIRECTORY_TAG = "gce.sweep.directory"
SWEEPER_TAG = "gce.sweep.client"  # on the parent: who starts its jobs, see presence.py
OUTPUT_TAG = "gce.sweep.output_dir"
COMMAND = 'python3 "$MLFLOW_GCE_JOB"'
BEST_ALIAS = "best"
NOT_STARTED = "NOT_STARTED"  # in the table: a job whose sweep was left before its turn
_PARENT = "mlflow.parentRunId"
_NAME_LENGTH = 120


@dataclass
class Row:
    """One job in the sweep's table. ``value``: the objective, where the function returned one."""

    number: int
    overrides: list[str]
    machine: str
    run_id: str = ""
    status: str = "RUNNING"
    value: Any = None
    seconds: float | None = None
    attempts: int = 0
    error: str = ""


@dataclass
class Table:
    """The jobs of a sweep, in their order."""

    rows: dict[int, Row] = field(default_factory=dict)

    def as_csv(self) -> str:
        """One line a job; a column for each key that any of them overrides."""
        rows = [self.rows[number] for number in sorted(self.rows)]
        keys = sorted({key for row in rows for key in parameters(row.overrides)})
        text = io.StringIO()
        columns = ["job", "status", "value", "machine", "seconds", "attempts", "run_id", "error"]
        writer = csv.writer(text)
        writer.writerow([*columns[:3], *(key for key in keys if key != "machine"), *columns[3:]])
        for row in rows:
            swept = parameters(row.overrides)
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            writer.writerow(
                [row.number, row.status, "" if row.value is None else row.value]
                + [swept.get(key, "") for key in keys if key != "machine"]
                + [row.machine, seconds, row.attempts, row.run_id, row.error]
            )
        return text.getvalue()

    def extremes(self) -> tuple[Row, Row] | None:
        """The jobs with the lowest and the highest objective; None where none is a number."""
        rows = [row for row in self.rows.values() if _is_number(row.value)]
        if not rows:
            return None
        return min(rows, key=lambda row: row.value), max(rows, key=lambda row: row.value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def parameters(overrides: Sequence[str]) -> dict[str, str]:
    """Hydra's words as MLflow parameters: ``+key=value`` is ``key``; deletions have none."""
    found = {}
    for word in overrides:
        key, sign, value = word.partition("=")
        if sign and not key.startswith("~"):
            found[re.sub(r"@.*$", "", key.lstrip("+"))] = value
    return found


def job_key(overrides: Sequence[str]) -> str:
    """What tells a job from the others of its sweep, by its overrides alone."""
    return hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:16]


def job_name(number: int, overrides: Sequence[str], words: Sequence[str]) -> str:
    """A job's run in tables and legends, which are narrow: its number, and what only it has.

    Args:
        words: the sweep's overrides as they were written; those that are a job's as well are the
            same for all of them.
    """
    own = parameters([word for word in overrides if word not in words])
    told = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in own.items())
    return f"{number}: {told or 'as it is'}"[:_NAME_LENGTH]


class SweepStore(Tracking):
    """The store, as a sweep needs it. Raises TrackingError as its parent does."""

    @_answering
    def experiment_named_by_environment(self) -> str:
        """The experiment MLflow itself would log into here."""
        from mlflow.tracking import fluent

        return str(fluent._get_experiment_id())

    @_answering
    def unfinished(self, experiment_id: str, key: str) -> Any:
        """The latest sweep with this key that did not end with all its jobs; None without one."""
        found = self._client.search_runs(
            [experiment_id],
            f"tags.`{KEY_TAG}` = '{key}' and attributes.status != 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return found[0] if found else None

    @_answering
    def children(self, experiment_id: str, parent_id: str) -> list[Any]:
        """The child runs of a sweep, the latest first."""
        runs, token = [], None
        while True:
            page = self._client.search_runs(
                [experiment_id],
                f"tags.`{_PARENT}` = '{parent_id}'",
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs += list(page)
            token = page.token
            if not token:
                return runs

    @_answering
    def create_parent(
        self, experiment: Experiment, name: str, tags: Mapping[str, str], words: Sequence[str]
    ) -> Any:
        """Create the sweep's own run; its parameters are what was swept, as it was written."""
        from mlflow.entities import Param

        run = self._client.create_run(experiment.experiment_id, run_name=name, tags=dict(tags))
        swept = parameters(words).items()
        params = [Param(k, v[:6000]) for k, v in swept if re.match(r"^[\w\-. /:]+$", k)]
        self._client.log_batch(run.info.run_id, params=params)
        return run

    def create_child(
        self,
        experiment: Experiment,
        parent_id: str,
        source: Source,
        *,
        name: str,
        run_name: str,
        overrides: Sequence[str],
        settings: Settings,
        tags: Mapping[str, str],
    ) -> str:
        """Create a job's run: its parameters are the swept ones and the machine.

        With its tags from the first moment: a client may be ended at any, and what goes on with
        the sweep must find every run that was made for it.
        """
        return self.create_run(
            experiment,
            source,
            EntryPoint(name, COMMAND, parameters(overrides), ()),
            settings=settings,
            backend_parameters={},
            run_name=run_name,
            tags={**tags, _PARENT: parent_id, SWEEP_TAG: parent_id},
        )

    @_answering
    def register_best(self, run_id: str, name: str) -> str | None:
        """Register the run's logged model as ``name``, with the alias that says it is the best.

        A model that is registered already only gets the alias.

        Returns:
            The version; None for a run that logged no model.
        """
        logged = self._client.get_run(run_id).outputs
        if logged is None or not logged.model_outputs:
            return None
        model_id = max(logged.model_outputs, key=lambda model: model.step).model_id
        quoted = name.replace("'", "")
        if not self._client.search_registered_models(f"name = '{quoted}'"):
            self._client.create_registered_model(name)
        versions = self._client.search_model_versions(f"name = '{quoted}'")
        known = [each.version for each in versions if each.run_id == run_id]
        version = known[0] if known else self._new_version(name, run_id, model_id)
        self._client.set_registered_model_alias(name, BEST_ALIAS, version)
        return str(version)

    def _new_version(self, name: str, run_id: str, model_id: str) -> str:
        import mlflow

        # A store in a database looks the model up in the process's store, whichever it itself is.
        if mlflow.get_tracking_uri() != self.uri:
            mlflow.set_tracking_uri(self.uri)
        source = f"models:/{model_id}"
        made = self._client.create_model_version(name, source, run_id, model_id=model_id)
        return str(made.version)

    @_answering
    def reopen(self, run_id: str) -> None:
        self._client.update_run(run_id, status="RUNNING")

    @_answering
    def close(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        self.set_tags(run_id, tags)
        self._client.set_terminated(run_id, status)


def put_table(storage: Storage, artifact_uri: str, table: Table, words: Sequence[str]) -> None:
    """The sweep's artifacts, straight into the bucket that MLflow reads them from."""
    bucket, root = parse_uri(artifact_uri)
    place = storage.in_bucket(bucket)
    place.put(f"{root}/sweep/table.csv", table.as_csv().encode(), content_type="text/csv")
    text = json.dumps(list(words), indent=1)
    place.put(f"{root}/sweep/overrides.json", text.encode(), content_type="application/json")


def summary_tags(table: Table, direction: str | None) -> dict[str, str]:
    """The extremes as tags; the best one where it is known which of them that is."""
    extremes = table.extremes()
    if extremes is None:
        return {}
    lowest, highest = extremes
    tags = {"gce.sweep.lowest": _told(lowest), "gce.sweep.highest": _told(highest)}
    if direction:
        best = highest if direction == "maximize" else lowest
        tags["gce.sweep.best"] = _told(best)
        tags["gce.sweep.best_run"] = best.run_id
    return tags


def _told(row: Row) -> str:
    return f"{row.value:g} by job {row.number} ({' '.join(row.overrides)}), run {row.run_id}"
