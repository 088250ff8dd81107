"""An emulated instance that takes a run's key, without the rest of a run."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.compute import Compute
from gce_backend.emulator import Emulator
from gce_backend.ssh_access import SshAccess
from gce_backend.ssh_route import Route
from gce_backend.ssh_state import SshState
from gce_backend.storage import Storage
from gce_backend.submission import Submission

ZONE = "europe-west1-b"
T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and "guest" in item.fixturenames:
            item.add_marker("flow")


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """Its instances publish their host keys some time after their insert, as real ones do."""
    with Emulator(boot_seconds=0.4, ssh_seconds=0.1, shutdown_seconds=1, limited=False) as running:
        running.create_bucket("bucket")
        yield running


@dataclass
class Guest:
    """One instance, and the run it is for."""

    emulator: Emulator
    submission: Submission
    compute: Compute
    storage: Storage

    @property
    def route(self) -> Route:
        return Route.of(self.emulator.env, emulated=True)

    def as_json(self) -> str:
        """The submission, for a process of its own."""
        return json.dumps({k: v for k, v in vars(self.submission).items() if k != "paths"})

    @property
    def state(self) -> SshState:
        return SshState(self.submission.run_id)

    def access(self, route: Route | None = None, via: str | None = None) -> SshAccess:
        return SshAccess(
            self.submission, self.compute, self.storage, route=route or self.route, via=via
        )

    def insert(self, metadata: dict[str, str] | None = None, *, key: str | None = None) -> None:
        """Create the instance; ``key``: another line of ``ssh-keys`` than a new key's."""
        items = {
            "enable-guest-attributes": "TRUE",
            "enable-oslogin": "FALSE",
            "ssh-keys": key or self.state.make_key(self.submission.deadline),
            "startup-script": "true",
            **(metadata or {}),
        }
        image = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
        disk = {"sourceImage": image, "diskSizeGb": "50"}
        self.compute.insert(
            ZONE,
            {
                "name": self.submission.instance,
                "machineType": f"zones/{ZONE}/machineTypes/n1-standard-2",
                "disks": [{"boot": True, "autoDelete": True, "initializeParams": disk}],
                "networkInterfaces": [
                    {
                        "network": "global/networks/default",
                        "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}],
                    }
                ],
                "metadata": {"items": [{"key": k, "value": v} for k, v in items.items()]},
            },
        )

    @property
    def directory(self) -> Path:
        """The instance's disk, seen from outside."""
        return self.emulator.instance_directory(self.submission.instance)

    @property
    def log(self) -> Path:
        return self.agent_directory / "run.log"

    @property
    def agent_directory(self) -> Path:
        directory = self.directory / "state/mlflow-gce"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def resource(self) -> dict[str, Any]:
        return self.compute.get(ZONE, self.submission.instance)


@pytest.fixture
def guest(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """A guest that is not inserted yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.storage_url)
    yield new_guest(emulator)
    emulator.clear_faults()
    for instance in emulator.instances():
        emulator.erase(instance["name"])


def new_guest(emulator: Emulator) -> Guest:
    run_id = uuid.uuid4().hex
    submission = Submission(
        run_id=run_id,
        project=emulator.project,
        zone=ZONE,
        instance=f"mlflow-{run_id}-1",
        bucket="bucket",
        paths=RunPaths("mlflow-gce", run_id),
        tracking_uri="",
        deadline=time.time() + 3600,
        created_at=time.time(),
        ssh_via="external",
    )
    compute = Compute(emulator.project, endpoint=emulator.compute_url)
    return Guest(emulator, submission, compute, Storage("bucket", project=emulator.project))


def via(guest: Guest, way: str) -> Guest:
    return replace(guest, submission=replace(guest.submission, ssh_via=way))


def run(connection: Any, command: str) -> tuple[int, str]:
    channel = connection.start(command)
    output = b""
    while data := channel.recv(65536):
        output += data
    return channel.recv_exit_status(), output.decode()


def eventually(check: Callable[[], T], what: str, seconds: float = 30) -> T:
    """The first true value of ``check``; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := check():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")
