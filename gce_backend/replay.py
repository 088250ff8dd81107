"""Journal records become calls to the MLflow store.

The bodies are parsed with MLflow's own protocol messages and become its own entities, as in its
server, so nothing is lost on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gce_backend.agent.records import (
    FINAL_STATUS_TAG,
    ID_TAG,
    OF_TAG,
    Item,
    Records,
    Refusal,
    Refused,
)
from gce_backend.batch import Body, entity, parsed
from gce_backend.provisional import ProvisionalIds
from gce_backend.run_store import RunStore


class Replay(Records):
    """Raises TrackingError where it may all be done again later, from the segment's start."""

    def __init__(
        self, store: RunStore, ids: ProvisionalIds, refuse: Callable[[Refusal], None]
    ) -> None:
        super().__init__(ids.translate, refuse)
        self._store = store
        self._ids = ids

    def log_batch(self, run_id: str, items: list[Item]) -> None:
        self._store.write(
            lambda: self._store.store.log_batch(
                run_id,
                metrics=[item.entity for item in items if item.kind == "metrics"],
                params=[item.entity for item in items if item.kind == "params"],
                tags=[item.entity for item in items if item.kind == "tags"],
            )
        )

    def entity(self, kind: str, entry: Body) -> Any:
        return entity(kind, entry)

    def is_active(self, run_id: str) -> bool:
        try:
            run = self._store.write(lambda: self._store.store.get_run(run_id))
        except Refused:
            return False
        return bool(run.info.lifecycle_stage == "active")

    def malformed(self) -> tuple[type[Exception], ...]:
        from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]

        return (ParseError, *super().malformed())

    # ------------------------------------------------------------------ one by one

    def _create_run(self, body: Body, record: dict[str, Any]) -> None:
        from mlflow.entities import RunTag
        from mlflow.protos.service_pb2 import CreateRun

        provisional = str(record["provisional_id"])
        message = parsed(body, CreateRun())
        tags = [RunTag(tag.key, tag.value) for tag in message.tags]
        named = message.run_name or next((t.value for t in tags if t.key == "mlflow.runName"), "")
        tags += [RunTag(ID_TAG, provisional), RunTag(OF_TAG, self._store.run_id)]

        def create() -> None:
            self._ids.load()  # an earlier call may have taken effect, and its reply been lost
            if provisional not in self._ids.runs:
                self._store.store.create_run(
                    experiment_id=message.experiment_id,
                    user_id=message.user_id,
                    start_time=message.start_time or record["at"],
                    tags=tags,
                    run_name=named or f"run-{provisional[:8]}",  # as the relay told the trainer
                )
                self._ids.load()

        self._store.write(create)

    def _create_model(self, body: Body, record: dict[str, Any]) -> None:
        from mlflow.entities import LoggedModelParameter, LoggedModelTag
        from mlflow.protos.service_pb2 import CreateLoggedModel

        provisional = str(record["provisional_id"])
        message = parsed(body, CreateLoggedModel())
        tags = [LoggedModelTag(tag.key, tag.value) for tag in message.tags]
        tags += [LoggedModelTag(ID_TAG, provisional), LoggedModelTag(OF_TAG, self._store.run_id)]

        def create() -> None:
            self._ids.load()
            if provisional not in self._ids.models:
                self._store.store.create_logged_model(
                    experiment_id=message.experiment_id,
                    name=message.name or f"model-{provisional[2:10]}",
                    source_run_id=message.source_run_id,
                    tags=tags,
                    params=[LoggedModelParameter.from_proto(param) for param in message.params],
                    model_type=message.model_type,
                )
                self._ids.load()

        self._store.write(create)

    def _update_run(self, body: Body, _: dict[str, Any]) -> None:
        from mlflow.protos.service_pb2 import UpdateRun

        message = parsed(body, UpdateRun())
        run_id = message.run_id or message.run_uuid
        is_main = run_id == self._store.run_id  # its status is the exit code's to say
        self._store.write(
            lambda: self._store.store.update_run_info(
                run_id,
                message.status if message.HasField("status") and not is_main else None,
                message.end_time if message.HasField("end_time") and not is_main else None,
                message.run_name if message.HasField("run_name") else None,
            )
        )

    def _log_inputs(self, body: Body, _: dict[str, Any]) -> None:
        from mlflow.entities import DatasetInput, LoggedModelInput
        from mlflow.protos.service_pb2 import LogInputs

        message = parsed(body, LogInputs())
        models = [LoggedModelInput.from_proto(model) for model in message.models]
        self._store.write(
            lambda: self._store.store.log_inputs(
                message.run_id,
                datasets=[DatasetInput.from_proto(dataset) for dataset in message.datasets],
                models=models or None,
            )
        )

    def _log_outputs(self, body: Body, _: dict[str, Any]) -> None:
        """The store refuses an output that it has; after a replay it has it."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.protos.service_pb2 import LogOutputs

        message = parsed(body, LogOutputs())

        def log() -> None:
            outputs = self._store.store.get_run(message.run_id).outputs
            known = {model.model_id for model in outputs.model_outputs} if outputs else set()
            new = [LoggedModelOutput.from_proto(m) for m in message.models]
            new = [model for model in new if model.model_id not in known]
            if new:
                self._store.store.log_outputs(message.run_id, new)

        self._store.write(log)

    def _delete_tag(self, body: Body, _: dict[str, Any]) -> None:
        def delete() -> None:
            if body["key"] in self._store.store.get_run(body["run_id"]).data.tags:
                self._store.store.delete_tag(body["run_id"], body["key"])

        self._store.write(delete)

    def _log_model(self, body: Body, _: dict[str, Any]) -> None:
        """MLflow 2's endpoint appends to a tag, so a replay must look first."""
        from mlflow.models import Model

        description = json.loads(body["model_json"])
        mark = (description.get("utc_time_created"), description.get("artifact_path"))

        def record() -> None:
            tags = self._store.store.get_run(body["run_id"]).data.tags
            history = json.loads(tags.get("mlflow.log-model.history", "[]"))
            if mark not in [(m.get("utc_time_created"), m.get("artifact_path")) for m in history]:
                self._store.store.record_logged_model(body["run_id"], Model.from_dict(description))

        self._store.write(record)

    def _set_experiment_tag(self, body: Body, _: dict[str, Any]) -> None:
        from mlflow.entities import ExperimentTag

        tag = ExperimentTag(body["key"], body.get("value", ""))
        self._store.write(
            lambda: self._store.store.set_experiment_tag(str(body["experiment_id"]), tag)
        )

    # ------------------------------------------------------------------ logged models

    def _finalize_model(self, model_id: str, body: Body, _: str) -> None:
        from mlflow.entities import LoggedModelStatus, LoggedModelTag
        from mlflow.protos.service_pb2 import FinalizeLoggedModel

        message = parsed({**body, "model_id": model_id}, FinalizeLoggedModel())
        status = LoggedModelStatus.from_int(message.status)
        if any(model.model_id == model_id for model in self._ids.models.values()):
            tag = LoggedModelTag(FINAL_STATUS_TAG, status.value)
            self._store.write(lambda: self._store.store.set_logged_model_tags(model_id, [tag]))
        else:
            self._store.write(lambda: self._store.store.finalize_logged_model(model_id, status))

    def _log_model_params(self, model_id: str, body: Body, _: str) -> None:
        from mlflow.entities import LoggedModelParameter

        params = [LoggedModelParameter(p["key"], p.get("value", "")) for p in body["params"]]

        def log() -> None:
            known = self._store.store.get_logged_model(model_id).params
            new = [param for param in params if param.key not in known]
            if new:
                self._store.store.log_logged_model_params(model_id, new)

        self._store.write(log)

    def _set_model_tags(self, model_id: str, body: Body, _: str) -> None:
        from mlflow.entities import LoggedModelTag

        tags = [LoggedModelTag(tag["key"], tag.get("value", "")) for tag in body["tags"]]
        self._store.write(lambda: self._store.store.set_logged_model_tags(model_id, tags))

    def _delete_model_tag(self, model_id: str, _: Body, key: str) -> None:
        def delete() -> None:
            if key in self._store.store.get_logged_model(model_id).tags:
                self._store.store.delete_logged_model_tag(model_id, key)

        self._store.write(delete)


Replay.calls = {
    ("POST", "runs/create"): Replay._create_run,
    ("POST", "runs/update"): Replay._update_run,
    ("POST", "runs/log-inputs"): Replay._log_inputs,
    ("POST", "runs/outputs"): Replay._log_outputs,
    ("POST", "runs/delete-tag"): Replay._delete_tag,
    ("POST", "runs/log-model"): Replay._log_model,
    ("POST", "experiments/set-experiment-tag"): Replay._set_experiment_tag,
    ("POST", "logged-models"): Replay._create_model,
}

Replay.model_calls = {
    ("PATCH", ""): Replay._finalize_model,
    ("POST", "params"): Replay._log_model_params,
    ("PATCH", "tags"): Replay._set_model_tags,
    ("DELETE", "tags"): Replay._delete_model_tag,
}
