"""MLflow's real server for the agent to forward to; a test puts a door before it, ``front.py``."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.server
import pytest
from mlflow.server import handlers
from mlflow.tracking import MlflowClient
from mlflow.utils.proto_json_utils import message_to_json
from mlflow_server import MlflowServer
from werkzeug.serving import WSGIRequestHandler, make_server

from gce_backend.agent.paths import RunPaths

from .instance import TestInstance

# What the client would have left on the run.
CREATED_AT, USD_PER_HOUR = 1_764_000_000.5, 0.1234


class Store:
    """A sqlite file of a server's own, a copy of an empty one."""

    def __init__(self, directory: Path, empty: Path) -> None:
        self.database = Path(shutil.copy(empty, directory / "server.db"))
        self.uri = f"sqlite:///{self.database}"
        self.url = ""


class ServerInProcess(Store):
    """The application of ``mlflow server`` in a thread of the tests: it is imported already."""

    def __init__(self, directory: Path, empty: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(directory, empty)
        patch.setenv(mlflow.server.BACKEND_STORE_URI_ENV_VAR, self.uri)
        patch.setenv(mlflow.server.ARTIFACT_ROOT_ENV_VAR, str(directory / "artifacts"))
        patch.setattr(handlers, "_tracking_store", None)
        self._server = make_server(
            "127.0.0.1", 0, mlflow.server.app, threaded=True, request_handler=_Silent
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Silent(WSGIRequestHandler):
    def log_request(self, *args: object) -> None:
        pass


class TrackingServer(Store):
    """``mlflow server`` itself; its start takes seconds."""

    def __init__(self, directory: Path, empty: Path) -> None:
        super().__init__(directory, empty)
        self._server = MlflowServer(directory, self.uri)
        self.url = self._server.url
        try:
            self._server.start()
        except BaseException:
            self._server.kill()
            raise

    def stop(self) -> None:
        self._server.kill()


@dataclass
class ForwardedRun:
    """A run on the server, as the client makes it, and the instance that is to train it."""

    server: Store
    instance: TestInstance
    run_id: str
    experiment_id: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.server.uri)

    @property
    def run(self) -> Any:
        return self.client.get_run(self.run_id)

    @property
    def applied(self) -> int:
        """How many segments are on the server."""
        return int(self.run.data.tags.get("gce.journal.applied", "0"))

    def copy_store(self, target: Path) -> str:
        """The store as it is now, for something else to write to; gives its URI."""
        shutil.copy(self.server.database, target)
        return f"sqlite:///{target}"

    def submit(
        self,
        command: str,
        files: dict[str, str],
        uri: str,
        secret: dict[str, str] | None,
        **changes: Any,
    ) -> None:
        client = self.client
        experiment = client.get_experiment(self.experiment_id)
        tracking = {
            "experiment_id": self.experiment_id,
            "experiment": json.loads(message_to_json(experiment.to_proto())),
            "run": json.loads(message_to_json(self.run.to_proto())),
            "forward": {"uri": uri, "secret": secret},
        }
        self.instance.submit(command, files, run_id=self.run_id, tracking=tracking, **changes)


def make_run(server: Store, instance: TestInstance) -> ForwardedRun:
    """An experiment in the instance's bucket, with one run that waits for its instance."""
    client = MlflowClient(server.uri)
    name = f"e-{uuid.uuid4().hex[:8]}"
    location = f"gs://{instance.bucket.name}/mlflow-gce/experiments/{name}"
    experiment_id = client.create_experiment(name, artifact_location=location)
    tags = {"gce.created_at": str(CREATED_AT), "gce.usd_per_hour": str(USD_PER_HOUR)}
    run = client.create_run(experiment_id, tags={"mlflow.user": "u", **tags}, run_name="first")
    client.update_run(run.info.run_id, status="SCHEDULED")
    instance.paths = RunPaths("mlflow-gce", run.info.run_id)
    return ForwardedRun(server, instance, run.info.run_id, experiment_id)
