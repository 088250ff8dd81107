"""Many instances at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from gce_backend.emulator import Emulator

from .conftest import Api, eventually

pytestmark = pytest.mark.flow

MANY = 200
LIST_SECONDS = 0.05
START_SECONDS = 1.0


def best(seconds: list[float]) -> float:
    """Of several tries: other work on the machine is not the emulator's."""
    return min(seconds)


def test_starting_takes_less_than_a_second() -> None:
    taken = []
    for _ in range(3):
        before = time.monotonic()
        with Emulator():
            taken.append(time.monotonic() - before)

    assert best(taken) < START_SECONDS


def test_two_hundred_instances_are_alive_and_listed_quickly() -> None:
    with Emulator(boot_seconds=0.04, shutdown_seconds=0.5) as emulator:
        api = Api(emulator.compute_url, emulator.project)
        names = [f"vm-{number}" for number in range(MANY)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: api.insert(n, startup="sleep 9999"), names))
        assert {answer.status_code for answer in answers} == {200}
        eventually(
            lambda: [i["status"] for i in emulator.instances()] == ["RUNNING"] * MANY,
            "all run",
            seconds=120,
        )
        taken = []
        with requests.Session() as session:
            for _ in range(10):
                before = time.monotonic()
                answer = session.get(f"{api.zone}/instances", timeout=30)
                taken.append(time.monotonic() - before)
        assert len(answer.json()["items"]) == MANY
        assert best(taken) < LIST_SECONDS
        root = emulator.root

    assert not root.exists()
