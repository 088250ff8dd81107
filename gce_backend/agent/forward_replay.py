"""Journal records become requests to the tracking server.

The bodies are what MLflow's client sent, so they go on as they are; only ids, and what a repeated
request would do twice, are looked after.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from .entities import Json
from .forward_ids import ServerIds
from .forward_server import Server, tags_of
from .records import FINAL_STATUS_TAG, ID_TAG, OF_TAG, Item, Records, Refusal, Refused

# MLflow's protocol names them so; the tag holds the entity's name, which the client reads.
STATUSES = {
    "LOGGED_MODEL_PENDING": "PENDING",
    "LOGGED_MODEL_READY": "READY",
    "LOGGED_MODEL_UPLOAD_FAILED": "FAILED",
}
_STATUS_NUMBERS = dict(enumerate(STATUSES, 1))


class Replay(Records):
    """Raises ServerAway where it may all be done again later, from the segment's start."""

    def __init__(self, server: Server, ids: ServerIds, refuse: Callable[[Refusal], None]) -> None:
        super().__init__(ids.translate, refuse)
        self._server, self._ids = server, ids

    def log_batch(self, run_id: str, items: list[Item]) -> None:
        body: Json = {"run_id": run_id}
        for item in items:
            body.setdefault(item.kind, []).append(item.entity)
        self._write("POST", "runs/log-batch", body)

    def entity(self, kind: str, entry: Json) -> Json:
        return entry

    def is_active(self, run_id: str) -> bool:
        try:
            stage = self._get_run(run_id)["info"].get("lifecycle_stage", "active")
            return bool(stage == "active")
        except Refused:
            return False

    def successor(self, run_id: str) -> str:
        return self._ids.replaced(run_id)

    def _get_run(self, run_id: str) -> Json:
        run: Json = self._write("GET", "runs/get", {"run_id": run_id})["run"]
        return run

    def _write(self, method: str, path: str, body: Json) -> Json:
        return self._server.write(lambda: self._server.send(method, path, body))

    # -- one by one ---------------------------------------------------------------------------

    def _create_run(self, body: Json, record: Json) -> None:
        provisional = str(record["provisional_id"])
        tags = list(body.get("tags") or ())
        named = body.get("run_name") or next(
            (tag.get("value") for tag in tags if tag["key"] == "mlflow.runName"), ""
        )
        wanted = {
            **body,
            "start_time": body.get("start_time") or record["at"],
            "run_name": named or f"run-{provisional[:8]}",  # as the relay told the trainer
            "tags": tags + self._marks(provisional),
        }

        def create() -> None:
            self._ids.load()  # an earlier call may have taken effect, and its reply been lost
            if provisional not in self._ids.runs:
                self._server.send("POST", "runs/create", wanted)
                self._ids.load()

        self._server.write(create)

    def _create_model(self, body: Json, record: Json) -> None:
        provisional = str(record["provisional_id"])
        wanted = {
            **body,
            "name": body.get("name") or f"model-{provisional[2:10]}",
            "tags": [*(body.get("tags") or ()), *self._marks(provisional)],
        }

        def create() -> None:
            self._ids.load()
            if provisional not in self._ids.models:
                self._server.send("POST", "logged-models", wanted)
                self._ids.load()

        self._server.write(create)

    def _marks(self, provisional: str) -> list[Json]:
        return [
            {"key": ID_TAG, "value": provisional},
            {"key": OF_TAG, "value": self._server.run_id},
        ]

    def _update_run(self, body: Json, _: Json) -> None:
        """The main run's status is the exit code's to say."""
        if (body.get("run_id") or body.get("run_uuid")) == self._server.run_id:
            body = {k: v for k, v in body.items() if k not in ("status", "end_time")}
        self._write("POST", "runs/update", body)

    def _log_inputs(self, body: Json, _: Json) -> None:
        self._write("POST", "runs/log-inputs", body)

    def _log_outputs(self, body: Json, _: Json) -> None:
        """The server refuses an output that it has; after a replay it has it."""
        run = self._get_run(body["run_id"])
        outputs = (run.get("outputs") or {}).get("model_outputs") or ()
        known = {output["model_id"] for output in outputs}
        new = [model for model in body["models"] if model["model_id"] not in known]
        if new:
            self._write("POST", "runs/outputs", {**body, "models": new})

    def _delete_tag(self, body: Json, _: Json) -> None:
        if body["key"] in tags_of(self._get_run(body["run_id"])):
            self._write("POST", "runs/delete-tag", body)

    def _log_model(self, body: Json, _: Json) -> None:
        """MLflow 2's endpoint appends to a tag, so a replay must look first."""
        description = json.loads(body["model_json"])
        mark = (description.get("utc_time_created"), description.get("artifact_path"))
        tags = tags_of(self._get_run(body["run_id"]))
        history = json.loads(tags.get("mlflow.log-model.history") or "[]")
        if mark not in [(m.get("utc_time_created"), m.get("artifact_path")) for m in history]:
            self._write("POST", "runs/log-model", body)

    def _set_experiment_tag(self, body: Json, _: Json) -> None:
        self._write("POST", "experiments/set-experiment-tag", body)

    # -- logged models ------------------------------------------------------------------------

    def _finalize_model(self, model_id: str, body: Json, _: str) -> None:
        if all(info["model_id"] != model_id for info in self._ids.models.values()):
            self._write("PATCH", f"logged-models/{model_id}", {**body, "model_id": model_id})
            return
        status: str = _STATUS_NUMBERS.get(body["status"]) or body["status"]
        tag = {"key": FINAL_STATUS_TAG, "value": STATUSES[status]}
        self._set_model_tags(model_id, {"tags": [tag]}, "")

    def _log_model_params(self, model_id: str, body: Json, _: str) -> None:
        model = self._write("GET", f"logged-models/{model_id}", {})["model"]
        known = {param["key"] for param in model.get("data", {}).get("params") or ()}
        new = [param for param in body["params"] if param["key"] not in known]
        if new:
            wanted = {"model_id": model_id, "params": new}
            self._write("POST", f"logged-models/{model_id}/params", wanted)

    def _set_model_tags(self, model_id: str, body: Json, _: str) -> None:
        wanted = {"model_id": model_id, "tags": body["tags"]}
        self._write("PATCH", f"logged-models/{model_id}/tags", wanted)

    def _delete_model_tag(self, model_id: str, _: Json, key: str) -> None:
        model = self._write("GET", f"logged-models/{model_id}", {})["model"]
        if key in {tag["key"] for tag in model["info"].get("tags") or ()}:
            self._write("DELETE", f"logged-models/{model_id}/tags/{key}", {})


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
