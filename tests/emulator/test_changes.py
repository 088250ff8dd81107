"""Changes that must not be made, or not made twice: fingerprints, and inserts of many."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from gce_backend.emulator import Emulator, Fault

from .conftest import ZONE, Api, body
from .test_compute import reason


@pytest.mark.parametrize(
    ("verb", "key", "change"),
    [
        ("setMetadata", "fingerprint", {"items": [{"key": "a", "value": "b"}]}),
        ("setLabels", "labelFingerprint", {"labels": {"a": "b"}}),
    ],
)
def test_a_stale_fingerprint_is_a_412(
    api: Api, verb: str, key: str, change: dict[str, Any]
) -> None:
    instance = api.create()
    current = (instance["metadata"] if verb == "setMetadata" else instance)[key]

    fresh = api.post("vm", verb, {**change, key: current})
    api.finish(fresh.json())
    stale = api.post("vm", verb, {**change, key: current})

    assert fresh.status_code == 200
    assert reason(stale) == (412, "conditionNotMet")


@pytest.mark.parametrize(
    ("path", "key", "field", "changes"),
    [
        (
            f"zones/{ZONE}/instances/vm/setMetadata",
            "metadata.fingerprint",
            "fingerprint",
            [{"items": [{"key": "a", "value": value}]} for value in "12"],
        ),
        (
            f"zones/{ZONE}/instances/vm/setLabels",
            "labelFingerprint",
            "labelFingerprint",
            [{"labels": {"a": value}} for value in "12"],
        ),
        (
            "setCommonInstanceMetadata",
            "commonInstanceMetadata.fingerprint",
            "fingerprint",
            [{"items": [{"key": "a", "value": value}]} for value in "12"],
        ),
    ],
)
def test_of_two_changes_of_the_same_state_one_fails(
    emulator: Emulator, api: Api, path: str, key: str, field: str, changes: list[dict[str, Any]]
) -> None:
    api.create()
    before = requests.get(
        api.base if "/" not in path else f"{api.base}/{path.rpartition('/')[0]}", timeout=30
    )
    current: Any = before.json()
    for part in key.split("."):
        current = current[part]
    emulator.inject(Fault("operation_slow", "*.set*", times=2, seconds=3600))
    begun = [
        requests.post(f"{api.base}/{path}", json={**change, field: current}, timeout=30).json()
        for change in changes
    ]
    emulator.advance(3600)
    place = f"zones/{ZONE}" if "/" in path else "global"
    done = [
        requests.post(f"{api.base}/{place}/operations/{each['name']}/wait", timeout=60).json()
        for each in begun
    ]
    failed = [each for each in done if "error" in each]

    assert [each["error"]["errors"][0]["code"] for each in failed] == ["CONDITION_NOT_MET"]
    assert failed[0]["httpErrorStatusCode"] == 412
    assert failed[0]["httpErrorMessage"] == "PRECONDITION FAILED"


def bulk_insert(api: Api) -> dict[str, Any]:
    """Three instances at once; the operation when it is done."""
    properties = {k: v for k, v in body("x").items() if k != "name"}
    properties["machineType"] = "n1-standard-2"
    url = f"{api.base}/regions/europe-west1/instances/bulkInsert"
    wanted = {"count": "3", "namePattern": "job-##", "instanceProperties": properties}
    operation = requests.post(url, json=wanted, timeout=30).json()
    waiting = f"{api.base}/regions/europe-west1/operations/{operation['name']}/wait"
    done: dict[str, Any] = requests.post(waiting, timeout=60).json()
    return done


def test_bulk_insert_makes_all_or_none(emulator: Emulator, api: Api) -> None:
    done = bulk_insert(api)

    assert done["status"] == "DONE" and "error" not in done
    assert sorted(i["name"] for i in emulator.instances()) == ["job-01", "job-02", "job-03"]


@pytest.mark.parametrize(
    ("kind", "where"),
    [("quota_region", "in region europe-west1."), ("no_capacity", f"zones/{ZONE}'")],
)
def test_bulk_insert_names_the_place_that_has_no_room(
    emulator: Emulator, api: Api, kind: str, where: str
) -> None:
    emulator.inject(Fault(kind))

    assert where in bulk_insert(api)["error"]["errors"][0]["message"]
    assert emulator.instances() == []
