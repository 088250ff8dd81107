"""Every method the page names, called by Google's own client, which reads the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core.exceptions import NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import compute_v1

from gce_backend.emulator import Emulator
from gce_backend.emulator.methods import METHODS

from .conftest import ZONE, body, eventually

pytestmark = pytest.mark.flow

REGION = "europe-west1"


class Clients:
    """Google's clients by the API's names: ``call("instances.setLabels", instance="vm", …)``."""

    def __init__(self, emulator: Emulator) -> None:
        endpoint = emulator.compute_url.removesuffix("/compute/v1/")
        self.options = {
            "client_options": {"api_endpoint": endpoint},
            "credentials": AnonymousCredentials(),
        }
        self.project = emulator.project

    def call(self, identifier: str, **request: Any) -> Any:
        resource, _, method = identifier.partition(".")
        kind = f"{resource[0].upper()}{resource[1:]}Client"
        client = getattr(compute_v1, kind)(**self.options)
        name = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", method)
        # Where there is one: the call itself, without the waiting of `result()`.
        bare = getattr(client, f"{name}_unary", None) or getattr(client, name)
        return bare(request={"project": self.project, **request})

    def finish(self, operation: Any) -> Any:
        place = {"operation": operation.name}
        if operation.zone:
            return self.call("zoneOperations.wait", zone=ZONE, **place)
        if operation.region:
            return self.call("regionOperations.wait", region=REGION, **place)
        return self.call("globalOperations.wait", **place)

    def do(self, identifier: str, **request: Any) -> Any:
        done = self.finish(self.call(identifier, **request))
        assert done.status == compute_v1.Operation.Status.DONE
        assert not done.error.errors, done
        return done


@pytest.fixture(scope="module")
def clients() -> Iterator[tuple[Clients, Emulator]]:
    with Emulator(boot_seconds=0.04, shutdown_seconds=1) as emulator:
        yield Clients(emulator), emulator


def names(found: Any) -> list[str]:
    return [each.name for each in found]


def everywhere(found: Any, collection: str) -> list[str]:
    """Names in an aggregated list."""
    return [each.name for _, scoped in found for each in getattr(scoped, collection)]


def read_the_catalogue(clients: Clients) -> None:
    call, zone = clients.call, {"zone": ZONE}
    assert ZONE in names(call("zones.list"))
    assert call("zones.get", **zone).status == "UP"
    assert REGION in names(call("regions.list"))
    quotas = {quota.metric: quota.limit for quota in call("regions.get", region=REGION).quotas}
    assert quotas["CPUS"] > 0 and "NVIDIA_T4_GPUS" in quotas
    assert call("images.get", project="debian-cloud", image=image_name(clients)).status == "READY"
    assert "debian-12" in [i.family for i in call("images.list", project="debian-cloud")]
    assert call("networks.get", network="default").name in names(call("networks.list"))
    for resource, parameter, name in (
        ("machineTypes", "machine_type", "n1-standard-2"),
        ("acceleratorTypes", "accelerator_type", "nvidia-tesla-t4"),
        ("diskTypes", "disk_type", "pd-balanced"),
    ):
        collection = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", resource)
        assert call(f"{resource}.get", **zone, **{parameter: name}).name == name
        assert name in names(call(f"{resource}.list", **zone))
        assert name in everywhere(call(f"{resource}.aggregatedList"), collection)


def image_name(clients: Clients) -> str:
    family = clients.call("images.getFromFamily", project="debian-cloud", family="debian-12")
    return str(family.name)


def live_an_instance(clients: Clients) -> None:
    call, do = clients.call, clients.do
    vm = {"zone": ZONE, "instance": "vm"}
    metadata = {"items": [{"key": "enable-guest-attributes", "value": "TRUE"}]}
    wanted = compute_v1.Instance.from_json(json.dumps(body("vm", metadata=metadata)))
    do("instances.insert", zone=ZONE, instance_resource=wanted)
    found = call("instances.get", **vm)
    assert found.status == "RUNNING"
    assert names(call("instances.list", zone=ZONE)) == ["vm"]
    assert everywhere(call("instances.aggregatedList"), "instances") == ["vm"]
    items = [*found.metadata.items, {"key": "a", "value": "b"}]
    changed = {"fingerprint": found.metadata.fingerprint, "items": items}
    do("instances.setMetadata", **vm, metadata_resource=changed)
    labels = {"label_fingerprint": found.label_fingerprint, "labels": {"run": "a"}}
    do("instances.setLabels", **vm, instances_set_labels_request_resource=labels)
    found = call("instances.get", **vm)
    assert found.labels == {"run": "a"}
    assert "a" in [item.key for item in found.metadata.items]
    eventually(lambda: call("instances.getSerialPortOutput", **vm).contents, "the boot")
    eventually(lambda: _has_host_keys(clients, vm), "the guest's host keys")
    asked = ["compute.instances.stop"]
    permissions = call(
        "instances.testIamPermissions",
        zone=ZONE,
        resource="vm",
        test_permissions_request_resource={"permissions": asked},
    )
    assert permissions.permissions == asked
    do("instances.simulateMaintenanceEvent", **vm)
    do("instances.reset", **vm)
    do("instances.stop", **vm)
    assert call("instances.get", **vm).status == "TERMINATED"
    do("instances.start", **vm)
    assert call("instances.get", **vm).status == "RUNNING"


def _has_host_keys(clients: Clients, vm: dict[str, str]) -> bool:
    try:
        found = clients.call("instances.getGuestAttributes", **vm, query_path="hostkeys/")
    except NotFound:
        return False
    return [each.namespace for each in found.query_value.items] == ["hostkeys"]


def delete_the_instance_and_then_its_disk(clients: Clients) -> None:
    call, do, zone = clients.call, clients.do, {"zone": ZONE}
    disk = {**body("kept")["disks"][0], "autoDelete": False}
    wanted = compute_v1.Instance.from_json(json.dumps(body("kept", disks=[disk])))
    do("instances.insert", **zone, instance_resource=wanted)
    for name in ("kept", "vm"):
        do("instances.delete", **zone, instance=name)
    assert names(call("disks.list", **zone)) == ["kept"]
    assert everywhere(call("disks.aggregatedList"), "disks") == ["kept"]
    assert call("disks.get", **zone, disk="kept").size_gb == 50
    do("disks.delete", **zone, disk="kept")
    assert names(call("disks.list", **zone)) == []


def make_many_at_once(clients: Clients) -> Any:
    properties = {key: value for key, value in body("x").items() if key != "name"}
    wanted = {
        "count": "2",
        "namePattern": "many-#",
        "instanceProperties": {**properties, "machineType": "n1-standard-2"},
    }
    resource = compute_v1.BulkInsertInstanceResource.from_json(json.dumps(wanted))
    done = clients.do(
        "regionInstances.bulkInsert",
        region=REGION,
        bulk_insert_instance_resource_resource=resource,
    )
    assert names(clients.call("instances.list", zone=ZONE)) == ["many-1", "many-2"]
    for name in ("many-1", "many-2"):
        clients.do("instances.delete", zone=ZONE, instance=name)
    return done


def change_the_project(clients: Clients) -> Any:
    found = clients.call("projects.get").common_instance_metadata
    items = [{"key": "who", "value": "everyone"}]
    done = clients.do(
        "projects.setCommonInstanceMetadata",
        metadata_resource={"fingerprint": found.fingerprint, "items": items},
    )
    assert clients.call("projects.get").common_instance_metadata.items[0].key == "who"
    return done


def read_and_delete_operations(clients: Clients, regional: Any, common: Any) -> None:
    zonal = next(iter(clients.call("zoneOperations.list", zone=ZONE)))
    listed = everywhere(clients.call("globalOperations.aggregatedList"), "operations")
    for resource, operation, place in (
        ("zoneOperations", zonal, {"zone": ZONE}),
        ("regionOperations", regional, {"region": REGION}),
        ("globalOperations", common, {}),
    ):
        named = {**place, "operation": operation.name}
        assert clients.call(f"{resource}.get", **named).name == operation.name
        assert operation.name in names(clients.call(f"{resource}.list", **place))
        assert operation.name in listed
        clients.call(f"{resource}.delete", **named)
        assert operation.name not in names(clients.call(f"{resource}.list", **place))


def test_googles_client_gets_an_answer_from_every_method(
    clients: tuple[Clients, Emulator],
) -> None:
    client, emulator = clients
    read_the_catalogue(client)
    live_an_instance(client)
    delete_the_instance_and_then_its_disk(client)
    regional = make_many_at_once(client)
    common = change_the_project(client)
    read_and_delete_operations(client, regional, common)

    answered = {call.name for call in emulator.calls if call.status == 200}
    assert answered == set(METHODS)
