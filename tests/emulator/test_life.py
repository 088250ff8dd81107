"""What happens to an instance while something else happens to it."""

from __future__ import annotations

import pytest
import requests

from gce_backend.emulator import Emulator, Fault

from .conftest import Api, body, eventually
from .test_metadata import Guest

pytestmark = pytest.mark.flow  # real processes and servers


def settle(emulator: Emulator) -> None:
    """Until nothing goes on in the background."""
    eventually(lambda: not emulator._cloud._tasks, "an end of all that goes on")


def reboots_when_it_goes_down(api: Api) -> None:
    """``reboot`` returns once the emulator has taken it; then it waits for the end under way."""
    items = [
        {"key": "startup-script", "value": "echo up again"},
        {"key": "shutdown-script", "value": "reboot"},
    ]
    api.create(metadata={"items": items})
    eventually(lambda: "startup-script exit" in api.serial(), "it has booted")


def test_a_reboot_during_the_deletion_brings_nothing_back(emulator: Emulator, api: Api) -> None:
    reboots_when_it_goes_down(api)
    directory = emulator.instance_directory("vm")

    assert "error" not in api.finish(api.delete().json())
    settle(emulator)

    assert api.get().status_code == 404
    assert not directory.exists()


def test_a_reboot_during_the_stop_leaves_it_stopped(emulator: Emulator, api: Api) -> None:
    reboots_when_it_goes_down(api)

    api.finish(api.post("vm", "stop").json())
    settle(emulator)

    assert api.get().json()["status"] == "TERMINATED"
    assert api.serial().splitlines().count("up again") == 1


def test_a_preempted_instance_that_starts_again_is_not_preempted(
    emulator: Emulator, api: Api
) -> None:
    spot = {"provisioningModel": "SPOT", "instanceTerminationAction": "STOP"}
    instance = api.create(scheduling=spot)
    emulator.preempt("vm")
    api.finish(api.post("vm", "start").json())

    guest = Guest(instance, emulator.instance_directory("vm"))
    assert guest.get("instance/preempted").text == "FALSE"


def test_a_stop_during_the_boot_is_no_failure_of_the_insert() -> None:
    with Emulator(boot_seconds=1000) as emulator:
        api = Api(emulator.compute_url, emulator.project)
        insert = api.insert().json()
        eventually(lambda: emulator._life("vm")._boot, "it boots")
        api.finish(api.post("vm", "stop").json())

        assert "error" not in api.finish(insert)
        assert api.get().json()["status"] == "TERMINATED"


def test_a_deletion_during_the_boot_ends_the_insert_after_it() -> None:
    with Emulator(boot_seconds=1000) as emulator:
        api = Api(emulator.compute_url, emulator.project)
        insert = api.insert().json()
        eventually(lambda: emulator._life("vm")._boot, "it boots")
        api.delete()

        failure = api.finish(insert)["error"]["errors"][0]
        assert failure["code"] == "RESOURCE_NOT_FOUND"
        assert api.get().status_code == 404


KEPT = [{**disk, "autoDelete": False} for disk in body("vm")["disks"]]


def disks(api: Api) -> list[str]:
    found = requests.get(f"{api.zone}/disks", timeout=30).json()
    return [disk["name"] for disk in found.get("items", [])]


def test_an_insert_without_capacity_leaves_no_disk(emulator: Emulator, api: Api) -> None:
    emulator.inject(Fault("no_capacity"))
    failed = api.finish(api.insert(disks=KEPT).json())

    assert "error" in failed
    assert disks(api) == []


def test_a_bulk_insert_without_capacity_leaves_no_disk(emulator: Emulator, api: Api) -> None:
    emulator.inject(Fault("no_capacity"))
    properties = {**body("vm", disks=KEPT, machineType="n1-standard-2")}
    del properties["name"]
    request = {"count": "2", "namePattern": "vm-#", "instanceProperties": properties}
    region = f"{api.base}/regions/europe-west1"
    operation = requests.post(f"{region}/instances/bulkInsert", json=request, timeout=30).json()
    done = requests.post(f"{region}/operations/{operation['name']}/wait", timeout=30).json()

    assert "error" in done
    assert disks(api) == []


def test_a_deletion_leaves_the_disks_that_are_to_stay(api: Api) -> None:
    api.create(disks=KEPT)
    api.finish(api.delete().json())
    left = disks(api)
    api.finish(requests.delete(f"{api.zone}/disks/vm", timeout=30).json())

    assert left == ["vm"]
