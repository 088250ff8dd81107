"""One emulator for all stories, and the command line as a user has it.

Every story ends with the same check: no instance, and no process of one, is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clients import Client
from mlflow.tracking import MlflowClient

from gce_backend.compute import Compute
from gce_backend.emulator import Emulator

PROJECTS = Path(__file__).parent.parent / "projects"
CHECKOUT = Path(__file__).parent.parent.parent
MLFLOW = [sys.executable, "-m", "mlflow"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("flow")


@pytest.fixture(scope="session")
def _emulator() -> Iterator[Emulator]:
    with Emulator(boot_seconds=0.1) as emulator:
        yield emulator


@pytest.fixture
def emulator(_emulator: Emulator) -> Iterator[Emulator]:
    """The emulator, without instances and faults before and after."""
    _emulator.clear_faults()
    yield _emulator
    _emulator.clear_faults()
    left = [(i["zone"].rpartition("/")[2], i["name"]) for i in _emulator.instances()]
    compute = Compute(_emulator.env["GOOGLE_CLOUD_PROJECT"], endpoint=_emulator.compute_url)
    for zone, name in left:
        compute.delete(zone, name)
    assert left == [], "an instance outlived its story"


@dataclass
class Cloud:
    """A bucket, a store and a command line of a story's own, on the shared emulator."""

    emulator: Emulator
    bucket: str
    directory: Path
    environ: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    @property
    def tracking_uri(self) -> str:
        return self.environ["MLFLOW_TRACKING_URI"]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def start(self, *words: str, **environ: str) -> Client:
        """Start ``mlflow`` or ``mlflow-gce`` in the story's directory."""
        client = Client(list(words), environ={**self.environ, **environ}, directory=self.directory)
        self.clients.append(client)
        return client

    def run(self, *words: str, seconds: float = 120, **environ: str) -> tuple[int, str]:
        """Run a command to its end: (exit code, everything it printed)."""
        process = self.spawn(*words, **environ)
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output

    def spawn(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        """Start any command, with all of its own start-up, in the story's directory."""
        process = subprocess.Popen(
            list(words),
            cwd=self.directory,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def mlflow_run(
        self, project: str | Path, *words: str, seconds: float = 120, **environ: str
    ) -> tuple[int, str]:
        client = self.start_run(project, *words, **environ)
        return client.end(seconds), client.text

    def mlflow_gce(self, *words: str, seconds: float = 120, **environ: str) -> tuple[int, str]:
        client = self.start("mlflow-gce", *words, **environ)
        return client.end(seconds), client.text

    def start_run(self, project: str | Path, *words: str, **environ: str) -> Client:
        return self.start("mlflow", "run", str(project), "--backend", "gce", *words, **environ)

    def only_run(self) -> Any:
        """The one run of this backend that the story's store holds."""
        client = self.client
        experiments = [e.experiment_id for e in client.search_experiments()]
        (run,) = client.search_runs(experiments)
        return run

    def objects(self, prefix: str = "") -> list[str]:
        """Names of the bucket's objects."""
        from gce_backend.storage import Storage

        with environment(self.environ):
            return [info.name for info in Storage(self.bucket, project="p").list(prefix)]

    def read(self, name: str) -> bytes:
        from gce_backend.storage import Storage

        with environment(self.environ):
            data = Storage(self.bucket, project="p").read(name)
        assert data is not None, f"no object {name}"
        return data

    def inserts(self) -> list[Any]:
        """The calls that created an instance for this story's runs."""
        return [
            call
            for call in self.emulator.calls
            if call.service == "compute"
            and call.method == "POST"
            and call.path.endswith("/instances")
            and self.bucket in str(call.body)
        ]

    def inserted(self) -> list[str]:
        """Names of the instances that inserts of this story made, in order."""
        made = [call for call in self.inserts() if call.status == 200]
        ours = {str(call.query.get("requestId")): call for call in made}  # a retry makes no second
        return [str((call.body or {}).get("name")) for call in ours.values()]


class environment:
    """``os.environ`` with more in it, for the length of a block."""

    def __init__(self, more: dict[str, str]) -> None:
        self._more = more

    def __enter__(self) -> None:
        self._before = dict(os.environ)
        os.environ.update(self._more)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self._before)


@pytest.fixture
def cloud(emulator: Emulator, empty_store: Path, tmp_path: Path) -> Iterator[Cloud]:
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    emulator.create_bucket(bucket)
    directory = tmp_path / "home"
    directory.mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    shutil.copy(empty_store, directory / "mlflow.db")
    environ = {
        **os.environ,
        **emulator.env,
        "MLFLOW_GCE_BUCKET": bucket,
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "MLFLOW_GCE_GLANCE": "false",  # a story says by itself who deletes its instances
        "TMPDIR": str(temporary),  # a killed client leaves its files here, not in /tmp
    }
    story = Cloud(emulator, bucket, directory, environ)
    yield story
    for client in story.clients:
        client.kill()
    for process in story.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(check: Callable[[], Any], seconds: float = 60, what: str = "it") -> Any:
    """``check()`` as soon as it is true; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := check():
            return result
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come true within {seconds} s")
