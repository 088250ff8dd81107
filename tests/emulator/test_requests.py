"""Calls that come twice, by their ``requestId``; and such as cannot be read."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from gce_backend.emulator import Emulator
from gce_backend.emulator.cloud import Cloud, Settings
from gce_backend.emulator.limits import Limits
from gce_backend.emulator.methods import METHODS
from gce_backend.emulator.methods.arguments import Arguments
from gce_backend.emulator.methods.requests import once

from .conftest import ZONE, Api, body


def test_the_same_request_twice_makes_one_instance(emulator: Emulator, api: Api) -> None:
    url, params = f"{api.zone}/instances", {"requestId": str(uuid.uuid4())}
    first = requests.post(url, json=body("vm"), params=params, timeout=30).json()
    second = requests.post(url, json=body("vm"), params=params, timeout=30).json()

    assert first["name"] == second["name"]
    assert len(emulator.instances()) == 1


def test_the_same_request_at_the_same_time_takes_effect_once(tmp_path: Path) -> None:
    cloud = Cloud(Settings(tmp_path, "mark"), Limits("mark"))
    arguments = Arguments({"zone": ZONE}, {"requestId": str(uuid.uuid4())})

    @once
    async def method(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
        await asyncio.sleep(0)  # as an insert does, which opens its instance's doors
        return cloud.new_operation(
            f"zones/{ZONE}", "insert", "projects/p", "1", user="u"
        ).resource()

    async def call() -> list[dict[str, Any]]:
        return await asyncio.gather(*(method(cloud, arguments) for _ in range(6)))

    assert len({answer["name"] for answer in asyncio.run(call())}) == 1
    assert len(cloud.operations) == 1


def test_a_request_that_failed_may_be_made_again(api: Api) -> None:
    url, params = f"{api.zone}/instances", {"requestId": str(uuid.uuid4())}
    api.create()
    taken = requests.post(url, json=body("vm"), params=params, timeout=30)
    api.finish(api.delete().json())
    again = requests.post(url, json=body("vm"), params=params, timeout=30)

    assert (taken.status_code, again.status_code) == (409, 200)


@pytest.mark.parametrize(
    ("verb", "undoes"),
    [("DELETE", "DELETE"), ("reset", "stop"), ("simulateMaintenanceEvent", "stop")],
)
def test_a_repeated_change_is_answered_although_it_could_not_be_made_now(
    api: Api, verb: str, undoes: str
) -> None:
    api.create()
    url, params = f"{api.zone}/instances/vm", {"requestId": str(uuid.uuid4())}

    def call(what: str, **asked: Any) -> requests.Response:
        if what == "DELETE":
            return requests.delete(url, timeout=30, **asked)
        return requests.post(f"{url}/{what}", timeout=30, **asked)

    first = api.finish(call(verb, params=params).json())
    if undoes != verb:
        api.finish(call(undoes).json())
    second = call(verb, params=params)

    assert (second.status_code, call(verb).ok) == (200, False)
    assert second.json()["name"] == first["name"]


@pytest.mark.parametrize("fields", [")", "items(name", "a,(b)"])
def test_fields_that_cannot_be_read_are_refused_before_anything_happens(
    emulator: Emulator, api: Api, fields: str
) -> None:
    answer = requests.post(
        f"{api.zone}/instances", json=body("vm"), params={"fields": fields}, timeout=30
    )

    assert answer.status_code == 400
    assert emulator.instances() == []


def test_the_zero_request_id_is_refused(api: Api) -> None:
    params = {"requestId": str(uuid.UUID(int=0))}
    answer = requests.post(f"{api.zone}/instances", json=body("vm"), params=params, timeout=30)

    assert answer.status_code == 400


def batch(api: Api, line: bytes) -> requests.Response:
    part = b"--x\r\nContent-Type: application/http\r\n\r\n" + line + b"\r\n\r\n--x--\r\n"
    url = api.base.partition("/compute/")[0] + "/batch/compute/v1"
    kind = {"Content-Type": "multipart/mixed; boundary=x"}
    return requests.post(url, data=part, headers=kind, timeout=30)


DEEP = 1200  # a line of HTTP takes no more than 8190 bytes
UNREADABLE: list[Callable[[Api], requests.Response]] = [
    lambda api: requests.get(f"{api.zone}/instances?filter=" + "(" * DEEP, timeout=30),
    lambda api: requests.get(f"{api.zone}/instances?filter=" + "NOT " * DEEP + "a=b", timeout=30),
    lambda api: requests.get(f"{api.zone}/instances?filter={'(' * 60}a=b{')' * 60}", timeout=30),
    lambda api: requests.get(f"{api.zone}/instances?fields=" + "a(" * DEEP, timeout=30),
    lambda api: requests.get(f"{api.zone}/instances?maxResults=²", timeout=30),
    lambda api: requests.post(f"{api.zone}/instances", data="[" * 10**5, timeout=30),
    lambda api: batch(api, b"\xff\xfe / HTTP/1.1"),
    lambda api: requests.post(
        api.base.partition("/compute/")[0] + "/v1/projects/emulator-project:testIamPermissions",
        data="{",
        timeout=30,
    ),
]


@pytest.mark.parametrize("call", UNREADABLE)
def test_what_cannot_be_read_is_a_400_in_the_apis_words(
    api: Api, call: Callable[[Api], requests.Response]
) -> None:
    answer = call(api)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["errors"][0]["reason"] == "invalid"


def test_a_bug_is_told_in_the_apis_words_and_recorded(
    emulator: Emulator, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
        raise KeyError("nobody thought of it")

    monkeypatch.setitem(METHODS, "zones.list", broken)
    answer = requests.get(f"{api.base}/zones", timeout=30)

    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "Internal error: KeyError."
    assert emulator.calls[-1].status == 500
