"""What the relay knows: this run, its child runs, their models. The journal is its source.

``apply`` takes one journal record, whether it has just come or is read back after a restart.
Locations are ``gs://`` in here, as in the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .entities import Json, Model, Run
from .entries import UNFIT
from .errors import RelayError, not_found


class TrackingState:
    """Not thread-safe: the tracking API holds its lock around every call."""

    def __init__(self, experiment: Json, run: Json) -> None:
        self.experiment = dict(experiment)
        self.main = Run.from_json(run)
        self.runs: dict[str, Run] = {self.main.run_id: self.main}
        self.models: dict[str, Model] = {}

    # -- asking -------------------------------------------------------------------------------

    def run(self, run_id: Any) -> Run:
        found = self.runs.get(str(run_id))
        if found is None:
            raise not_found(
                f"Run with id={run_id} not found: the relay on the instance knows the run "
                f"{self.main.run_id} and the runs that it created. Ask the tracking server itself "
                "about others, outside the training."
            )
        return found

    def model(self, model_id: str) -> Model:
        found = self.models.get(model_id)
        if found is None:
            raise not_found(
                f"Logged model with ID '{model_id}' not found: the relay on the instance knows "
                "the models that this run logged. Fetch others before the training, or read their "
                "files from the bucket."
            )
        return found

    @property
    def location(self) -> str:
        """The experiment's artifact location, without a slash at its end."""
        return str(self.experiment["artifact_location"]).rstrip("/")

    # -- changing -----------------------------------------------------------------------------

    def apply(self, record: Json) -> None:
        """Apply a journal record. One of an unknown kind, for an unknown run, or with a body that
        makes no sense is skipped: it is for the store to judge, and an agent that starts again
        must get past it."""
        path, body = str(record["path"]), record.get("body") or {}
        try:
            if path == "runs/create":
                self._create_run(str(record["provisional_id"]), body, int(record["at"]))
            elif path == "logged-models":
                self._create_model(str(record["provisional_id"]), body, int(record["at"]))
            elif path.startswith("logged-models/"):
                self._change_model(str(record["method"]), path.split("/")[1:], body, record["at"])
            elif change := _RUN_CHANGES.get(path):
                change(self, self.run(body.get("run_id") or body.get("run_uuid")), body)
            elif path == "experiments/set-experiment-tag":
                tags = self.experiment.setdefault("tags", [])
                tags[:] = [tag for tag in tags if tag["key"] != body["key"]]
                tags.append({"key": body["key"], "value": body.get("value", "")})
        except (RelayError, *UNFIT):
            return

    def _log_batch(self, run: Run, body: Json) -> None:
        for point in body.get("metrics") or ():
            self._add_metric(run, point)
        for param in body.get("params") or ():
            run.params.setdefault(param["key"], param.get("value", ""))
        for tag in body.get("tags") or ():
            run.set_tag(tag["key"], tag.get("value", ""))

    def _add_metric(self, run: Run, point: Json) -> None:
        run.add_metric(point)
        model = self.models.get(str(point.get("model_id") or ""))
        if model is not None:
            model.add_metric({**point, "run_id": point.get("run_id") or run.run_id})

    def _log_parameter(self, run: Run, body: Json) -> None:
        run.params.setdefault(body["key"], body.get("value", ""))

    def _set_tag(self, run: Run, body: Json) -> None:
        run.set_tag(body["key"], body.get("value", ""))

    def _delete_tag(self, run: Run, body: Json) -> None:
        run.tags.pop(body["key"], None)

    def _log_inputs(self, run: Run, body: Json) -> None:
        run.add_datasets(body.get("datasets") or [])
        run.model_inputs += [
            item for item in body.get("models") or () if item not in run.model_inputs
        ]

    def _log_outputs(self, run: Run, body: Json) -> None:
        known = {item["model_id"] for item in run.model_outputs}
        run.model_outputs += [
            item for item in body.get("models") or () if item["model_id"] not in known
        ]

    def _log_model(self, run: Run, body: Json) -> None:
        history = json.loads(run.tags.get("mlflow.log-model.history") or "[]")
        history.append(json.loads(body["model_json"]))
        run.tags["mlflow.log-model.history"] = json.dumps(history)

    def _update_run(self, run: Run, body: Json) -> None:
        for field in ("status", "end_time"):
            if body.get(field):
                run.info[field] = body[field]
        if body.get("run_name"):
            run.set_tag("mlflow.runName", body["run_name"])

    def _create_run(self, run_id: str, body: Json, at: int) -> None:
        tags = {tag["key"]: tag.get("value", "") for tag in body.get("tags") or ()}
        name = body.get("run_name") or tags.get("mlflow.runName") or f"run-{run_id[:8]}"
        tags.setdefault("mlflow.runName", name)
        info = {
            "run_id": run_id,
            "run_uuid": run_id,
            "run_name": name,
            "experiment_id": str(self.experiment["experiment_id"]),
            "user_id": body.get("user_id", ""),
            "status": "RUNNING",
            "start_time": body.get("start_time") or at,
            "artifact_uri": f"{self.location}/{run_id}/artifacts",
            "lifecycle_stage": "active",
        }
        self.runs[run_id] = Run(info=info, tags=tags)

    def _create_model(self, model_id: str, body: Json, at: int) -> None:
        info = {
            "model_id": model_id,
            "experiment_id": str(self.experiment["experiment_id"]),
            "name": body.get("name") or f"model-{model_id[2:10]}",
            "creation_timestamp_ms": at,
            "last_updated_timestamp_ms": at,
            "artifact_uri": f"{self.location}/models/{model_id}/artifacts",
            "status": "LOGGED_MODEL_PENDING",
            "model_type": body.get("model_type", ""),
            "source_run_id": body.get("source_run_id", ""),
        }
        self.models[model_id] = Model(
            info=info,
            params={item["key"]: item.get("value", "") for item in body.get("params") or ()},
            tags={item["key"]: item.get("value", "") for item in body.get("tags") or ()},
        )

    def _change_model(self, method: str, path: list[str], body: Json, at: int) -> None:
        model = self.model(path[0])
        model.info["last_updated_timestamp_ms"] = at
        what = path[1] if len(path) > 1 else ""
        if what == "params":
            for item in body.get("params") or ():
                model.params[item["key"]] = item.get("value", "")
        elif what == "tags" and method == "DELETE":
            model.tags.pop("/".join(path[2:]), None)
        elif what == "tags":
            for item in body.get("tags") or ():
                model.tags[item["key"]] = item.get("value", "")
        elif method == "PATCH":
            model.info["status"] = body.get("status", model.info["status"])


_RUN_CHANGES: dict[str, Callable[[TrackingState, Run, Json], None]] = {
    "runs/log-batch": TrackingState._log_batch,
    "runs/log-metric": lambda state, run, body: state._add_metric(run, body),
    "runs/log-parameter": TrackingState._log_parameter,
    "runs/set-tag": TrackingState._set_tag,
    "runs/delete-tag": TrackingState._delete_tag,
    "runs/log-inputs": TrackingState._log_inputs,
    "runs/outputs": TrackingState._log_outputs,
    "runs/log-model": TrackingState._log_model,
    "runs/update": TrackingState._update_run,
}
