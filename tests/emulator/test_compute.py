"""The API itself: answers, errors, conditions. Every answer is also checked by its schema."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import requests
from discovery import check_answers, methods

from gce_backend.emulator import Emulator

from .conftest import ZONE, Api, body

LEGACY = "projects/deeplearning-platform-release/global/images/family/pytorch-latest-cpu"


def reason(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["errors"][0]["reason"]


def test_an_instance_comes_and_goes(api: Api) -> None:
    instance = api.create()
    assert instance["status"] == "RUNNING"

    operation = api.finish(api.delete().json())

    assert operation["status"] == "DONE"
    assert reason(api.get()) == (404, "notFound")


def test_a_get_tells_the_whole_way(emulator: Emulator, api: Api) -> None:
    operation = api.insert().json()
    seen = [api.get().json()["status"]]
    while api.get().json()["status"] != "RUNNING":
        seen.append(api.get().json()["status"])

    assert operation["status"] in ("PENDING", "RUNNING")
    assert seen[0] in ("PROVISIONING", "STAGING")


BAD = [
    ({"name": "Bad_Name"}, "resource.name"),
    ({"name": None}, "resource.name"),
    ({"colour": "red"}, "colour"),
    ({"machineType": None}, "machineType"),
    ({"machineType": f"zones/{ZONE}/machineTypes/n9-huge"}, "does not exist in zone"),
    ({"machineType": f"zones/{ZONE}/machineTypes/a2-highgpu-1g"}, "does not exist in zone"),
    ({"machineType": 5}, "machineType"),
    ({"disks": None}, "disks"),
    ({"networkInterfaces": None}, "network interface"),
    ({"labels": {"Upper": "x"}}, "lowercase"),
    ({"scheduling": {"provisioningModel": "CHEAP"}}, "provisioningModel"),
    ({"scheduling": {"provisioningModel": "SPOT", "automaticRestart": True}}, "AutomaticRestart"),
    ({"scheduling": {"maxRunDuration": {"seconds": "5"}}}, "maxRunDuration"),
    ({"scheduling": {"maxRunDuration": {"seconds": "60"}}}, "instanceTerminationAction"),
    ({"scheduling": {"terminationTime": "2020-01-01T00:00:00Z"}}, "Must be in the future"),
    ({"scheduling": {"terminationTime": "2120-01-01T00:00:00"}}, "RFC3339"),
    ({"scheduling": {"terminationTime": "2120-01-01"}}, "RFC3339"),
    (
        {
            "guestAccelerators": [
                {"acceleratorType": f"zones/{ZONE}/acceleratorTypes/x", "acceleratorCount": 1}
            ]
        },
        "Accelerator type",
    ),
    ({"serviceAccounts": [{"email": "default", "scopes": ["storage-rw"]}]}, "scope"),
    (
        {"disks": [{"boot": True, "initializeParams": {"sourceImage": LEGACY}}]},
        "image resource cannot be found",
    ),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=[json.dumps(bad[0])[:60] for bad in BAD])
def test_a_wrong_insert_is_a_400_that_says_why(
    emulator: Emulator, api: Api, changes: dict[str, Any], says: str
) -> None:
    answer = requests.post(f"{api.zone}/instances", json={**body("vm"), **changes}, timeout=30)

    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert emulator.instances() == []


def test_a_taken_name_is_a_409(api: Api) -> None:
    api.create()

    assert reason(api.insert()) == (409, "alreadyExists")


def test_stop_and_start(api: Api) -> None:
    api.create()
    api.finish(api.post("vm", "stop").json())
    stopped = api.get().json()
    api.finish(api.post("vm", "start").json())

    assert stopped["status"] == "TERMINATED"
    assert "natIP" not in stopped["networkInterfaces"][0]["accessConfigs"][0]
    assert api.get().json()["status"] == "RUNNING"


def test_disks_come_and_go_with_their_instance(api: Api) -> None:
    api.create()
    disks = requests.get(f"{api.zone}/disks", timeout=30).json()["items"]
    in_use = requests.delete(f"{api.zone}/disks/vm", timeout=30)
    api.finish(api.delete().json())

    assert [disk["name"] for disk in disks] == ["vm"]
    assert disks[0]["sizeGb"] == "50"
    assert reason(in_use) == (400, "resourceInUseByAnotherResource")
    assert "items" not in requests.get(f"{api.zone}/disks", timeout=30).json()


def test_a_disk_without_auto_delete_stays(api: Api) -> None:
    disks = [{**body("vm")["disks"][0], "autoDelete": False}]
    api.create(disks=disks)
    api.finish(api.delete().json())
    left = requests.get(f"{api.zone}/disks/vm", timeout=30)
    operation = requests.delete(f"{api.zone}/disks/vm", timeout=30).json()
    api.finish(operation)

    assert left.status_code == 200
    assert requests.get(f"{api.zone}/disks/vm", timeout=30).status_code == 404


READS = [
    "zones",
    f"zones/{ZONE}",
    "regions",
    "regions/europe-west1",
    f"zones/{ZONE}/machineTypes",
    f"zones/{ZONE}/machineTypes/n1-standard-2",
    f"zones/{ZONE}/acceleratorTypes",
    f"zones/{ZONE}/acceleratorTypes/nvidia-tesla-t4",
    f"zones/{ZONE}/diskTypes",
    f"zones/{ZONE}/diskTypes/pd-balanced",
    f"zones/{ZONE}/instances",
    f"zones/{ZONE}/operations",
    "global/operations",
    "aggregated/instances",
    "aggregated/machineTypes",
    "aggregated/acceleratorTypes",
    "aggregated/diskTypes",
    "aggregated/disks",
    "aggregated/operations",
    "",
]


@pytest.mark.parametrize("path", READS)
def test_reads_answer_what_their_schema_says(api: Api, path: str) -> None:
    answer = requests.get(f"{api.base}/{path}".rstrip("/"), timeout=30)

    assert answer.status_code == 200
    assert answer.json()["kind"].startswith("compute#")


def test_a_missing_zone_is_a_404(api: Api) -> None:
    assert reason(requests.get(f"{api.base}/zones/mars-1a", timeout=30)) == (404, "notFound")


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        ("zone", "GET", "zones/mars-1a/instances"),
        ("zone", "POST", "zones/mars-1a/instances"),
        ("zone", "GET", "zones/mars-1a/instances/vm"),
        ("zone", "GET", "zones/mars-1a/operations"),
        ("zone", "GET", "zones/mars-1a/machineTypes/n1-standard-2"),
        ("region", "GET", "regions/mars-1/operations"),
    ],
)
def test_whatever_lies_in_an_unknown_place_is_a_400(
    api: Api, kind: str, method: str, path: str
) -> None:
    answer = requests.request(method, f"{api.base}/{path}", json=body("vm"), timeout=30)

    assert reason(answer) == (400, "invalid")
    assert f"Unknown {kind}." in answer.json()["error"]["message"]


def test_a_family_resolves_and_a_deprecated_one_does_not(emulator: Emulator) -> None:
    images = f"{emulator.compute_url}projects/"
    live = requests.get(f"{images}debian-cloud/global/images/family/debian-12", timeout=30)
    old = requests.get(emulator.compute_url + LEGACY, timeout=30)

    assert live.json()["family"] == "debian-12"
    assert reason(old) == (404, "notFound")


def test_an_unknown_method_is_a_501_with_its_name(api: Api) -> None:
    answer = requests.get(f"{api.base}/global/firewalls", timeout=30)

    assert answer.status_code == 501
    assert answer.json()["error"]["message"] == "compute.firewalls.list is not emulated"


def test_a_made_up_answer_would_be_noticed(emulator: Emulator, api: Api) -> None:
    requests.get(f"{api.zone}/instances", timeout=30)
    genuine = emulator.calls[-1]
    check_answers([genuine])
    with pytest.raises(AssertionError):
        check_answers([replace(genuine, answer={"items": [{"colour": "red"}]})])

    assert Emulator.__exit__.__name__ == "leave_and_check"  # so every emulator is checked


def test_every_emulated_method_is_one_of_the_document() -> None:
    from gce_backend.emulator.discovery import document
    from gce_backend.emulator.methods import METHODS

    paths = {identifier: (verb, path) for identifier, verb, path in document()["methods"]}

    for identifier in METHODS:
        method = methods()[identifier]
        assert paths[identifier] == (method["httpMethod"], method["flatPath"])


def test_a_foreign_project_is_a_404(emulator: Emulator) -> None:
    answer = requests.get(f"{emulator.compute_url}projects/other/zones", timeout=30)

    assert reason(answer) == (404, "notFound")


def test_a_bogus_token_is_a_401(api: Api) -> None:
    headers = {"Authorization": "Bearer ya29.made-up"}
    answer = requests.get(f"{api.base}/zones", headers=headers, timeout=30)

    assert reason(answer) == (401, "authError")


def test_calls_are_recorded_in_order(emulator: Emulator, api: Api) -> None:
    before = len(emulator.calls)
    api.create()
    api.finish(api.delete().json())
    names = [call.name for call in emulator.calls[before:]]

    assert names[0] == "instances.insert"
    assert names.index("instances.delete") > names.index("instances.insert")
    assert emulator.calls[before].body == body("vm")


def test_fields_and_filters_of_lists(api: Api) -> None:
    api.create("vm-a", labels={"run": "a"})
    api.create("vm-b", labels={"run": "b"})
    params = {"filter": "labels.run=b", "fields": "items(name)"}
    answer = requests.get(f"{api.zone}/instances", params=params, timeout=30).json()

    assert answer == {"items": [{"name": "vm-b"}]}
