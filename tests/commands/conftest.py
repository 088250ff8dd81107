"""An emulator for the commands, and instances of runs without agents or trainers."""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import google_crc32c
import pytest
import requests
from click.testing import CliRunner

from gce_backend.agent.paths import RunPaths
from gce_backend.cli import main
from gce_backend.emulator import Emulator

MLFLOW_GCE = str(Path(sys.executable).with_name("mlflow-gce"))
ME = getpass.getuser()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the emulator has real servers: it comes after the unit tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "emulator" in item.fixturenames:
            item.add_marker("flow")


@pytest.fixture(scope="session")
def _running() -> Iterator[Emulator]:
    with Emulator(boot_seconds=0.04, shutdown_seconds=0.2) as running:
        yield running


@pytest.fixture
def emulator(_running: Emulator) -> Iterator[Emulator]:
    """The emulator, without instances and faults before and after."""
    _running.clear_faults()
    yield _running
    _running.clear_faults()
    for instance in _running.instances():
        _running.erase(instance["name"])


@dataclass(frozen=True)
class Done:
    """How a command ended, named as `subprocess` names it."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Cloud:
    """A bucket of a test's own, and the command line in a directory of its own."""

    emulator: Emulator
    bucket: str
    directory: Path
    environ: dict[str, str]
    zone: str = "europe-west1-b"
    runs: list[str] = field(default_factory=list)

    def run(self, *words: str, **environ: str) -> Done:
        """The command in this process: a fresh one would spend its time on importing MLflow."""
        before = Path.cwd()
        os.chdir(self.directory)
        try:
            result = CliRunner().invoke(main, words, env=self._environ_for_runner(environ))
        finally:
            os.chdir(before)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        """The command as a process of its own."""
        return subprocess.Popen(
            [MLFLOW_GCE, *words], cwd=self.directory, env=self.environ, **options
        )

    def _environ_for_runner(self, more: dict[str, str]) -> dict[str, str | None]:
        whole: dict[str, str | None] = dict.fromkeys(os.environ)
        return {**whole, **self.environ, **more}

    def json(self, *words: str, **environ: str) -> Any:
        done = self.run(*words, "--json", **environ)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def put(self, name: str, data: bytes | Any, bucket: str | None = None) -> dict[str, Any]:
        """An object; anything but bytes as JSON. Returns its manifest entry."""
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        bucket = bucket or self.bucket
        answer = requests.post(
            f"{self.emulator.storage_url}/upload/storage/v1/b/{bucket}/o",
            params={"uploadType": "media", "name": name},
            data=data,
            timeout=30,
        )
        answer.raise_for_status()
        crc32c = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        return {
            "bucket": bucket,
            "name": name,
            "size": len(data),
            "md5": hashlib.md5(data).hexdigest(),
            "crc32c": crc32c,
            "generation": str(answer.json()["generation"]),
        }

    def read(self, name: str) -> bytes:
        url = f"{self.emulator.storage_url}/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}"
        answer = requests.get(url, params={"alt": "media"}, timeout=30)
        answer.raise_for_status()
        return answer.content

    def instance(
        self,
        run_id: str | None = None,
        *,
        owner: str = ME,
        hours: float = 1.0,
        bucket: str | None = None,
        startup: str = ":",
        zone: str | None = None,
        name: str = "bold-crab-1",
        labels: dict[str, str] | None = None,
    ) -> str:
        """A running instance of a new run, as the backend would ask for it; returns the run's id.

        Args:
            hours: to its deadline.
            labels: instead of, or beside, the usual ones.
        """
        run_id = run_id or uuid.uuid4().hex
        self.runs.append(run_id)
        zone = zone or self.zone
        spec = f"gs://{bucket or self.bucket}/{self.paths(run_id).spec}"
        body = {
            "name": f"mlflow-{run_id}-1",
            "machineType": f"zones/{zone}/machineTypes/n1-standard-2",
            "labels": {
                "mlflow-gce-run": run_id,
                "mlflow-gce-attempt": "1",
                "mlflow-gce-owner": owner,
                "mlflow-gce-deadline": str(round(time.time() + hours * 3600)),
                **(labels or {}),
            },
            "disks": [
                {
                    "boot": True,
                    "autoDelete": True,
                    "initializeParams": {
                        "sourceImage": (
                            "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
                        ),
                        "diskSizeGb": "50",
                    },
                }
            ],
            "networkInterfaces": [
                {
                    "network": "global/networks/default",
                    "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}],
                }
            ],
            "metadata": {
                "items": [
                    {"key": "startup-script", "value": startup},
                    {"key": "mlflow-gce-spec", "value": spec},
                    {"key": "mlflow-gce-name", "value": name},
                ]
            },
        }
        base = f"{self.emulator.compute_url}projects/{self.emulator.project}/zones/{zone}"
        answer = requests.post(f"{base}/instances", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        operation = answer.json()["name"]
        ended = requests.post(f"{base}/operations/{operation}/wait", timeout=60).json()
        assert "error" not in ended, ended
        return run_id

    def store_run(self, name: str = "bold-crab-1", **tags: str) -> str:
        """A run of this backend in the MLflow store; returns its id."""
        client = self.client
        found = client.get_experiment_by_name("digits")
        location = f"gs://{self.bucket}/mlflow-gce/experiments/digits"
        experiment = found.experiment_id if found else client.create_experiment("digits", location)
        run_id = client.create_run(experiment, run_name=name).info.run_id
        now = time.time()
        values = {
            "gce.run": f"gs://{self.bucket}/{self.paths(run_id).root}",
            "gce.project": self.emulator.project,
            "gce.zone": self.zone,
            "gce.instance": f"mlflow-{run_id}-1",
            "gce.deadline": str(round(now + 3600)),
            "gce.created_at": str(round(now - 60, 3)),
            "gce.usd_per_hour": "0.1163",
            "gce.machine_type": "n1-standard-2",
            "gce.spot": "false",
            "mlflow.user": ME,
            **tags,
        }
        for key, value in values.items():
            client.set_tag(run_id, key, value)
        return run_id

    @property
    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.environ["MLFLOW_TRACKING_URI"])

    def artifacts(self, run_id: str) -> str:
        """Where the run's artifacts are, as an object's name ending in a slash."""
        return f"mlflow-gce/experiments/digits/{run_id}/artifacts/"

    def paths(self, run_id: str) -> RunPaths:
        return RunPaths("mlflow-gce", run_id)

    def ends(
        self,
        run_id: str,
        *,
        verified: bool = True,
        files: dict[str, bytes] | None = None,
        missing: tuple[str, ...] = (),
        bucket: str | None = None,
        reason: str = "succeeded",
    ) -> None:
        """What an agent leaves in the bucket at a run's end."""
        paths = self.paths(run_id)
        log = {paths.log(1): b"step 1\n", paths.log(2): b"step 2\n"}
        objects = [self.put(name, data, bucket) for name, data in {**log, **(files or {})}.items()]
        manifest = {"version": 1, "run_id": run_id, "attempt": 1, "objects": objects}
        self.put(paths.manifest, manifest, bucket)
        now = time.time()
        status = {
            "version": 1,
            "run_id": run_id,
            "attempt": 1,
            "instance": f"mlflow-{run_id}-1",
            "zone": self.zone,
            "end_reason": reason,
            "exit_code": 0,
            "message": "the trainer ended with exit code 0",
            "started_at": now - 60,
            "ended_at": now - 2,
            "written_at": now,
            "phases": [
                {"phase": "fetching", "at": now - 60},
                {"phase": "running", "at": now - 50},
                {"phase": "collecting", "at": now - 2},
            ],
            "log_segments": 2,
            "log_bytes": 14,
            "journal_segments": 0,
            "journal_records": 0,
            "verified": verified,
            "missing": list(missing),
            "may_delete": True,
        }
        self.put(paths.status, status, bucket)

    def beats(
        self, run_id: str, *, ago: float = 0.0, phase: str = "running", attempt: int = 1
    ) -> None:
        """A heartbeat, ``ago`` seconds old."""
        now = time.time() - ago
        value = {
            "at": now,
            "attempt": attempt,
            "instance": f"mlflow-{run_id}-1",
            "phases": [{"phase": "fetching", "at": now - 20}, {"phase": phase, "at": now - 10}],
            "segments": {"log": 2, "journal": 0},
        }
        self.put(self.paths(run_id).heartbeat, value)

    def left(self) -> set[str]:
        """Run ids of the instances that exist."""
        return {i["labels"]["mlflow-gce-run"] for i in self.emulator.instances()}


@pytest.fixture
def store(cloud: Cloud, empty_store: Path) -> Cloud:
    """The cloud of a test, with an MLflow store."""
    shutil.copy(empty_store, cloud.directory / "mlflow.db")
    return cloud


@pytest.fixture
def cloud(emulator: Emulator, tmp_path: Path) -> Cloud:
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    emulator.create_bucket(bucket)
    environ = {
        **_environment(),
        **emulator.env,
        "MLFLOW_GCE_BUCKET": bucket,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TZ": "UTC",
        "TERM": "dumb",
        "MLFLOW_GCE_GLANCE": "false",  # but where a test is about it
    }
    return Cloud(emulator, bucket, tmp_path, environ)


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("COLUMNS", "LINES"))}
