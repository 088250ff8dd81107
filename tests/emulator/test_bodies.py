"""Every request body is checked, for the API's own description forbids next to nothing."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from discovery import methods

from gce_backend.emulator import Emulator
from gce_backend.emulator.methods import METHODS

from .conftest import ZONE, Api, body

REGION = "regions/europe-west1/instances/bulkInsert"
INSTANCE = f"zones/{ZONE}/instances/vm"
PATHS = {
    "instances.insert": f"zones/{ZONE}/instances",
    "instances.setLabels": f"{INSTANCE}/setLabels",
    "instances.setMetadata": f"{INSTANCE}/setMetadata",
    "instances.testIamPermissions": f"{INSTANCE}/testIamPermissions",
    "projects.setCommonInstanceMetadata": "setCommonInstanceMetadata",
    "regionInstances.bulkInsert": REGION,
}
PROPERTIES = {key: value for key, value in body("x").items() if key != "name"} | {
    "machineType": "n1-standard-2"
}
BULK = {"count": "1", "namePattern": "x-#", "instanceProperties": PROPERTIES}


def without(whole: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key not in names}


WRONG: list[tuple[str, Any, str]] = [
    *((method, {"colour": "red"}, 'Unknown name "colour"') for method in PATHS),
    *((method, ["a list"], "no JSON object") for method in PATHS),
    *((method, None, "body is missing") for method in PATHS),
    # unknown further down
    ("instances.insert", body("x", scheduling={"speed": 1}), "at 'scheduling'"),
    ("instances.insert", body("x", disks=[{"bot": True}]), "at 'disks[0]'"),
    ("instances.setMetadata", {"items": [{"name": "a"}]}, "at 'items[0]'"),
    (
        "regionInstances.bulkInsert",
        {**BULK, "instanceProperties": {**PROPERTIES, "zone": ZONE}},
        "at 'instanceProperties'",
    ),
    # of another type
    ("instances.insert", body("x", disks={}), "must be an array"),
    ("instances.insert", body("x", canIpForward="yes"), "must be true or false"),
    ("instances.insert", body("x", labels=["a"]), "must be an object"),
    ("instances.insert", body("x", scheduling={"maxRunDuration": {"seconds": "soon"}}), "64-bit"),
    ("instances.insert", body("x", description=5), "must be a string"),
    ("instances.setLabels", {"labels": {"a": 1}}, "must be a string"),
    ("instances.testIamPermissions", {"permissions": "all"}, "must be an array"),
    ("regionInstances.bulkInsert", {**BULK, "count": "many"}, "64-bit"),
    # required and not there
    ("instances.insert", without(body("x"), "name"), "'resource.name' not specified"),
    ("instances.insert", without(body("x"), "machineType"), "'resource.machineType' not spec"),
    ("instances.insert", without(body("x"), "disks"), "No disks are specified"),
    ("instances.insert", without(body("x"), "networkInterfaces"), "network interface is required"),
    ("instances.insert", body("x", disks=[{"boot": True}]), "disks[0].initializeParams' not spec"),
    ("instances.insert", body("x", guestAccelerators=[{"acceleratorCount": 1}]), "not specified"),
    ("regionInstances.bulkInsert", without(BULK, "instanceProperties"), "not specified"),
    ("regionInstances.bulkInsert", without(BULK, "count"), "'count'"),
    ("regionInstances.bulkInsert", without(BULK, "namePattern"), "'namePattern'"),
]


@pytest.fixture(scope="module")
def instance(emulator: Emulator) -> None:
    Api(emulator.compute_url, emulator.project).create("vm")


@pytest.fixture(autouse=True)
def _clean_slate() -> None:
    """The instance is every test's; none may change anything."""


def test_every_method_with_a_body_is_here() -> None:
    assert set(PATHS) == {name for name in METHODS if "request" in methods()[name]}


@pytest.mark.parametrize(("method", "given", "says"), WRONG)
def test_a_wrong_body_is_a_400_that_names_the_place(
    emulator: Emulator, api: Api, instance: None, method: str, given: Any, says: str
) -> None:
    answer = requests.post(f"{api.base}/{PATHS[method]}", json=given, timeout=30)

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["errors"][0]["reason"] in ("invalid", "required")
    assert [each["name"] for each in emulator.instances()] == ["vm"]


@pytest.mark.parametrize("method", ["instances.setMetadata", "instances.setLabels"])
def test_a_change_without_a_fingerprint_is_a_412(api: Api, instance: None, method: str) -> None:
    answer = requests.post(f"{api.base}/{PATHS[method]}", json={}, timeout=30)

    assert answer.status_code == 412


def test_what_is_no_json_is_a_400(api: Api) -> None:
    answer = requests.post(f"{api.base}/{PATHS['instances.insert']}", data="{", timeout=30)

    assert answer.status_code == 400
    assert "Parse Error" in answer.json()["error"]["message"]
