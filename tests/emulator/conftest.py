from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import compute_v1

from gce_backend.emulator import Emulator

ZONE = "europe-west1-b"
T = TypeVar("T")
# Seconds that processes of these tests sleep for: theirs are found by it, and no others are.
LONG = str(10**7 + os.getpid())


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    """One for a module."""
    with Emulator(boot_seconds=0.04, shutdown_seconds=3) as running:
        running.create_bucket("bucket")
        yield running


@pytest.fixture(autouse=True)
def _clean_slate(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "emulator" in request.fixturenames:
        running = request.getfixturevalue("emulator")
        running.clear_faults()
        for instance in running.instances():
            running.erase(instance["name"])


@pytest.fixture
def api(emulator: Emulator) -> Api:
    return Api(emulator.compute_url, emulator.project)


class Api:
    """The REST API itself, for what the clients do not let through."""

    def __init__(self, compute_url: str, project: str) -> None:
        self.base = f"{compute_url}projects/{project}"
        self.zone = f"{self.base}/zones/{ZONE}"

    def insert(self, name: str = "vm", **changes: Any) -> requests.Response:
        return requests.post(f"{self.zone}/instances", json=body(name, **changes), timeout=30)

    def create(self, name: str = "vm", **changes: Any) -> dict[str, Any]:
        """Insert, wait, and give the instance."""
        answer = self.insert(name, **changes)
        assert answer.status_code == 200, answer.text
        operation = self.finish(answer.json())
        assert "error" not in operation, operation
        return self.get(name).json()

    def get(self, name: str = "vm") -> requests.Response:
        return requests.get(f"{self.zone}/instances/{name}", timeout=30)

    def post(self, name: str, verb: str, body: Any = None, **params: str) -> requests.Response:
        url = f"{self.zone}/instances/{name}/{verb}"
        return requests.post(url, json=body, params=params, timeout=30)

    def delete(self, name: str = "vm") -> requests.Response:
        return requests.delete(f"{self.zone}/instances/{name}", timeout=30)

    def finish(self, operation: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.zone}/operations/{operation['name']}"
        return requests.post(f"{url}/wait", timeout=60).json()

    def serial(self, name: str = "vm") -> str:
        url = f"{self.zone}/instances/{name}/serialPort"
        return str(requests.get(url, timeout=30).json()["contents"])


def body(name: str, *, startup: str = "", **changes: Any) -> dict[str, Any]:
    """A minimal insert; ``startup`` is its startup script."""
    items = [{"key": "startup-script", "value": startup}] if startup else []
    whole = {
        "name": name,
        "machineType": f"zones/{ZONE}/machineTypes/n1-standard-2",
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
            {"network": "global/networks/default", "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]}
        ],
        "metadata": {"items": items},
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def eventually(check: Callable[[], T], what: str, seconds: float = 20) -> T:
    """The first true value of ``check``; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := check():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


@pytest.fixture
def instances_client(emulator: Emulator) -> compute_v1.InstancesClient:
    return compute_v1.InstancesClient(
        client_options={"api_endpoint": emulator.compute_url.removesuffix("/compute/v1/")},
        credentials=AnonymousCredentials(),
    )
