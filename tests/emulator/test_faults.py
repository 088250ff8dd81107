"""Faults as data: each kind does what it says, so often and no more."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from gce_backend.emulator import Emulator, Fault, FaultKind
from gce_backend.emulator.faults import answer_error

from .conftest import Api, eventually

ANSWERS = {kind for kind in FaultKind if kind is not FaultKind.INSUFFICIENT_CAPACITY} & {
    kind for kind in FaultKind if answer_error(Fault(kind)) is not None
}


@pytest.mark.parametrize("kind", sorted(ANSWERS))
def test_an_answer_is_spoiled_as_often_as_asked(
    emulator: Emulator, api: Api, kind: FaultKind
) -> None:
    emulator.inject(Fault(kind, "instances.list", times=2))
    expected = answer_error(Fault(kind))
    codes = [requests.get(f"{api.zone}/instances", timeout=30).status_code for _ in range(3)]

    assert expected is not None
    assert codes == [expected.code, expected.code, 200]


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        ("no_capacity", "ZONE_RESOURCE_POOL_EXHAUSTED", 503),
        ("no_capacity_with_details", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", 503),
        ("quota_region", "QUOTA_EXCEEDED", 403),
        ("quota_global", "QUOTA_EXCEEDED", 403),
    ],
)
def test_a_failed_insert_says_so_in_its_operation_and_leaves_nothing(
    emulator: Emulator, api: Api, kind: str, code: str, status: int
) -> None:
    emulator.inject(Fault(kind, resource="europe-west1-b/*"))
    operation = api.finish(api.insert().json())

    assert operation["error"]["errors"][0]["code"] == code
    assert operation["httpErrorStatusCode"] == status
    assert api.get().status_code == 404


def test_a_global_quota_is_told_from_a_regional_one(emulator: Emulator, api: Api) -> None:
    messages = {}
    for kind in ("quota_region", "quota_global"):
        emulator.inject(Fault(kind))
        operation = api.finish(api.insert().json())
        messages[kind] = operation["error"]["errors"][0]["message"]

    assert "region europe-west1" in messages["quota_region"]
    assert "GPUS_ALL_REGIONS" in messages["quota_global"]


@pytest.mark.parametrize(
    ("kind", "exists"), [("reply_lost_before", 404), ("reply_lost_after", 200)]
)
def test_a_lost_reply(emulator: Emulator, api: Api, kind: str, exists: int) -> None:
    emulator.inject(Fault(kind, "instances.insert"))
    with pytest.raises(requests.ConnectionError):
        api.insert()

    assert api.get().status_code == exists
    assert emulator.calls[-2].status == 0


def test_a_delete_that_fails_twice(emulator: Emulator, api: Api) -> None:
    api.create()
    emulator.inject(Fault("operation_fails", "instances.delete", times=2))
    results = ["error" in api.finish(api.delete().json()) for _ in range(3)]

    assert results == [True, True, False]
    assert api.get().status_code == 404


def test_a_slow_operation_and_the_clock(emulator: Emulator, api: Api) -> None:
    emulator.inject(Fault("operation_slow", "instances.insert", seconds=600))
    operation = api.insert().json()
    url = f"{api.zone}/operations/{operation['name']}"
    eventually(lambda: requests.get(url, timeout=30).json()["status"] == "RUNNING", "it runs")

    emulator.advance(601)

    assert api.finish(operation)["status"] == "DONE"


def test_a_stuck_operation_never_ends(emulator: Emulator, api: Api) -> None:
    emulator.inject(Fault("operation_stuck", "instances.insert"))
    operation = api.insert().json()
    emulator.advance(86400)
    url = f"{api.zone}/operations/{operation['name']}"

    assert requests.get(url, timeout=30).json()["status"] != "DONE"


def test_a_slow_answer(emulator: Emulator, api: Api) -> None:
    emulator.inject(Fault("slow", "instances.list", seconds=0.5))
    started = time.monotonic()
    requests.get(f"{api.zone}/instances", timeout=30)

    assert time.monotonic() - started >= 0.5


def test_a_startup_script_that_never_runs(emulator: Emulator, api: Api) -> None:
    emulator.inject(Fault("no_startup_script", resource="vm"))
    api.create(startup="echo ran")
    api.create("other", startup="echo ran")
    eventually(lambda: "ran" in api.serial("other"), "the other's script")

    assert "ran" not in api.serial().splitlines()


def test_faults_over_the_control_endpoint(emulator: Emulator, api: Api) -> None:
    url = emulator.compute_url.replace("/compute/v1/", "/_emulator/faults")
    fault: dict[str, Any] = {"kind": "unavailable", "method": "zones.list"}
    requests.post(url, json=fault, timeout=30).raise_for_status()
    listed = requests.get(url, timeout=30).json()
    code = requests.get(f"{api.base}/zones", timeout=30).status_code
    unknown = requests.post(url, json={"kind": "earthquake"}, timeout=30)

    assert listed[0]["kind"] == "unavailable"
    assert code == 503
    assert unknown.status_code == 400


def test_a_fault_that_never_strikes_is_no_fault() -> None:
    with pytest.raises(ValueError, match="at least once"):
        Fault("slow", times=0)
