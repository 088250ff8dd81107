"""Journals as trainings make them: recorded from the MLflow client, by MLflow's own server.

The server keeps its own copy of the run's store, so it answers as the relay on an instance does:
ids that it gives out are unknown to the store the journal is applied to, which makes them
provisional. What it holds in the end is what the same calls log directly.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.storage import Storage

PREFIX = "mlflow-gce"
Record = dict[str, Any]


@dataclass
class SyncedRun:
    """A run in a sqlite store, and the bucket where its journal will be."""

    database: Path
    storage: Storage
    experiment_id: str
    run_id: str

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.database}"

    @property
    def paths(self) -> RunPaths:
        return RunPaths(PREFIX, self.run_id)

    def put_journal(self, records: list[Record], *, segment: int = 10, first: int = 1) -> int:
        """Upload the records as segments of ``segment`` records; returns the last number."""
        number = first - 1
        for start in range(0, len(records), segment):
            number += 1
            lines = "".join(json.dumps(r) + "\n" for r in records[start : start + segment])
            self.storage.put(self.paths.journal(number), lines.encode())
        return number


def make_run(directory: Path, template: Path, storage: Storage) -> SyncedRun:
    """A copy of an empty store, with one experiment in the bucket and one run."""
    from mlflow.tracking import MlflowClient

    database = directory / "store.db"
    shutil.copy(template, database)
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    location = f"gs://{storage.bucket}/{PREFIX}/experiments/e"
    experiment_id = client.create_experiment("e", artifact_location=location)
    run = client.create_run(
        experiment_id, start_time=1_764_000_000_000, tags={"mlflow.user": "u"}, run_name="first"
    )
    return SyncedRun(database, storage, experiment_id, run.info.run_id)


class Recorder:
    """WSGI middleware: what the relay would have put into the journal."""

    def __init__(self, app: Any, run_id: str) -> None:
        self.app = app
        self.run_id = run_id
        self.records: list[Record] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        import io

        data = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(data)
        statuses: list[str] = []

        def remember(status: str, headers: Any, *rest: Any) -> Any:
            statuses.append(status)
            return start_response(status, headers, *rest)

        reply = b"".join(self.app(environ, remember))
        path = environ["PATH_INFO"].removeprefix("/api/2.0/mlflow/")
        is_write = environ["REQUEST_METHOD"] != "GET" and not path.endswith("search")
        if is_write and statuses[0].startswith("200") and not path.startswith("/"):
            self.record(environ["REQUEST_METHOD"], path, json.loads(data or b"{}"), reply)
        return [reply]

    def record(self, method: str, path: str, body: Any, reply: bytes) -> None:
        if path == "runs/update" and body["run_id"] == self.run_id:
            body = {key: value for key, value in body.items() if key in ("run_id", "run_name")}
            if "run_name" not in body:
                return
        seq = len(self.records) + 1
        record = {"seq": seq, "at": 1_764_000_000_000 + seq, "path": path, "method": method}
        record["body"] = body
        if path == "runs/create":
            record["provisional_id"] = json.loads(reply)["run"]["info"]["run_id"]
        if path == "logged-models":
            record["provisional_id"] = json.loads(reply)["model"]["info"]["model_id"]
        self.records.append(record)


@contextmanager
def recording(run: SyncedRun, copy: Path) -> Iterator[tuple[str, Recorder]]:
    """Serve a copy of the run's store on loopback; yields its URL and what is written to it."""
    import mlflow.server
    from mlflow.server import handlers
    from werkzeug.serving import WSGIRequestHandler, make_server

    class _Silent(WSGIRequestHandler):
        def log_request(self, *args: object) -> None:
            pass

    shutil.copy(run.database, copy)
    variables = {
        mlflow.server.BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{copy}",
        mlflow.server.ARTIFACT_ROOT_ENV_VAR: str(copy.parent / "artifacts"),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    handlers._tracking_store = None
    handlers._get_tracking_store()  # now, since it also sets this process's tracking URI
    recorder = Recorder(mlflow.server.app, run.run_id)
    server = make_server("127.0.0.1", 0, recorder, threaded=True, request_handler=_Silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", recorder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        handlers._tracking_store = None
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def export(uri: str, run_id: str) -> dict[str, Any]:
    """Everything that a store knows of a run and of what it made, ids of what it made aside."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    main = client.get_run(run_id)
    experiment = main.info.experiment_id
    children = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=1000
    )
    models = [
        model
        for model in client.search_logged_models([experiment])
        if model.source_run_id in {run_id, *(child.info.run_id for child in children)}
    ]
    names = {child.info.run_id: f"child {child.info.run_name}" for child in children}
    names |= {model.model_id: f"model {model.name}" for model in models}
    exported = {
        "main": _export_run(client, main),
        "children": {child.info.run_name: _export_run(client, child) for child in children},
        "models": {model.name: _export_model(model) for model in models},
        "experiment tags": client.get_experiment(experiment).tags,
    }
    text = json.dumps(exported, sort_keys=True)
    for any_id, name in names.items():
        text = text.replace(any_id, name)
    return json.loads(text)  # type: ignore[no-any-return]


def _export_run(client: Any, run: Any) -> dict[str, Any]:
    from mlflow.utils.proto_json_utils import message_to_json

    info = dict(run.info)
    metrics = {
        key: sorted(
            (repr(point.value), point.timestamp, point.step)
            for point in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }
    inputs = json.loads(message_to_json(run.inputs.to_proto())) if run.inputs else {}
    return {
        "info": info,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key[:4] != "gce."},
        "metrics": metrics,
        "latest": {key: repr(value) for key, value in run.data.metrics.items()},
        "inputs": sorted(
            json.dumps(item, sort_keys=True) for item in inputs.get("dataset_inputs", [])
        ),
        "outputs": [(o.model_id, o.step) for o in run.outputs.model_outputs] if run.outputs else [],
    }


def _export_model(model: Any) -> dict[str, Any]:
    return {
        "status": str(model.status),
        "type": model.model_type,
        "source": model.source_run_id,
        "location": model.artifact_location,
        "params": model.params,
        "tags": {key: value for key, value in model.tags.items() if key[:4] != "gce."},
        "metrics": sorted(
            (m.key, repr(m.value), m.timestamp, m.step, m.dataset_name, m.dataset_digest, m.run_id)
            for m in model.metrics or []
        ),
    }
