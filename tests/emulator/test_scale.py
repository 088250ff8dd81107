"""Many instances at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from gce_backend.emulator import Emulator

from .conftest import Api, eventually

pytestmark = pytest.mark.flow

MANY = 200


def test_two_hundred_instances_are_alive_at_once() -> None:
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
        answer = requests.get(f"{api.zone}/instances", timeout=30)
        assert len(answer.json()["items"]) == MANY
        root = emulator.root

    assert not root.exists()
