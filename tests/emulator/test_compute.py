"""The API itself: answers, errors, conditions. Every answer is also checked by its schema."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import requests
from discovery import check_answers, methods

from gce_backend.emulator import Emulator, Fault

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
