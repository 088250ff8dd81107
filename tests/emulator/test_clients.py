"""Clients that nobody here wrote: google-cloud-compute and Apache Libcloud."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.api_core.exceptions import BadRequest, NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import compute_v1

from gce_backend.emulator import Emulator

from .conftest import ZONE, body

pytestmark = pytest.mark.flow  # real processes and servers


@pytest.fixture
def options(emulator: Emulator) -> dict[str, Any]:
    endpoint = emulator.compute_url.removesuffix("/compute/v1/")
    return {
        "client_options": {"api_endpoint": endpoint},
        "credentials": AnonymousCredentials(),
    }


@pytest.fixture
def instances(options: dict[str, Any]) -> compute_v1.InstancesClient:
    client = compute_v1.InstancesClient(**options)
    # The library polls operations at Google's own endpoint, whatever the client's is.
    client.transport._extended_operations_services["zone_operations"] = (
        compute_v1.ZoneOperationsClient(**options)
    )
    return client


def test_the_life_of_an_instance(
    emulator: Emulator, instances: compute_v1.InstancesClient, options: dict[str, Any]
) -> None:
    where = {"project": emulator.project, "zone": ZONE}
    wanted = compute_v1.Instance.from_json(json.dumps(body("vm", labels={"run": "a"})))
    instances.insert(**where, instance_resource=wanted).result(timeout=30)
    found = instances.get(**where, instance="vm")
    listed = list(
        instances.list(
            request=compute_v1.ListInstancesRequest(**where, filter="labels.run=a AND name=vm")
        )
    )
    everywhere = dict(instances.aggregated_list(project=emulator.project))
    metadata = compute_v1.Metadata(
        fingerprint=found.metadata.fingerprint, items=[compute_v1.Items(key="k", value="v")]
    )
    instances.set_metadata(**where, instance="vm", metadata_resource=metadata).result(timeout=30)
    with pytest.raises(PreconditionFailed):
        instances.set_metadata(**where, instance="vm", metadata_resource=metadata)
    instances.stop(**where, instance="vm").result(timeout=30)
    stopped = instances.get(**where, instance="vm").status
    instances.start(**where, instance="vm").result(timeout=30)
    instances.get_serial_port_output(**where, instance="vm")
    instances.reset(**where, instance="vm").result(timeout=30)
    instances.delete(**where, instance="vm").result(timeout=30)

    assert [each.name for each in listed] == ["vm"]
    assert [each.name for each in everywhere[f"zones/{ZONE}"].instances] == ["vm"]
    assert stopped == "TERMINATED"
    with pytest.raises(NotFound):
        instances.get(**where, instance="vm")


def test_pages_are_followed(emulator: Emulator, instances: compute_v1.InstancesClient) -> None:
    where = {"project": emulator.project, "zone": ZONE}
    for number in range(5):
        wanted = compute_v1.Instance.from_json(json.dumps(body(f"vm-{number}")))
        instances.insert(**where, instance_resource=wanted).result(timeout=30)
    request = compute_v1.ListInstancesRequest(**where, max_results=2)

    assert [each.name for each in instances.list(request=request)] == [
        f"vm-{number}" for number in range(5)
    ]


def test_an_error_has_its_class_and_message(
    emulator: Emulator, instances: compute_v1.InstancesClient
) -> None:
    wanted = compute_v1.Instance(name="vm")
    with pytest.raises(BadRequest) as caught:
        instances.insert(project=emulator.project, zone=ZONE, instance_resource=wanted)

    assert caught.value.errors[0]["reason"] == "required"


def test_libcloud_lists_creates_finds_and_destroys(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    libcloud = pytest.importorskip(
        "libcloud.compute.drivers.gce", reason="apache-libcloud is not installed"
    )
    driver = _libcloud_driver(libcloud, emulator, monkeypatch)
    node = driver.create_node(
        "vm", "n1-standard-2", "debian-12", location=ZONE, ex_network="default"
    )
    listed = [each.name for each in driver.list_nodes()]
    found = driver.ex_get_node("vm", zone=ZONE)
    destroyed = driver.destroy_node(node)

    assert listed == ["vm"]
    assert found.extra["status"] == "RUNNING"
    assert destroyed
    assert driver.list_nodes() == []


def _libcloud_driver(libcloud: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver has its host and its OAuth built in; both are replaced, nothing else."""
    from types import SimpleNamespace
    from urllib.parse import urlsplit

    from libcloud.common.base import ConnectionUserAndKey

    address = urlsplit(emulator.compute_url)

    class Connection(libcloud.GCEConnection):  # type: ignore[misc]
        host = address.hostname

        def __init__(
            self, user_id: str, key: str, secure: bool, project: str = "", **_: Any
        ) -> None:
            ConnectionUserAndKey.__init__(self, user_id, key, secure=False, port=address.port)
            self.oauth2_credential = SimpleNamespace(access_token="")
            self.request_path = f"/compute/v1/projects/{project}"
            self.gce_params = None

        def pre_connect_hook(self, params: Any, headers: Any) -> tuple[Any, Any]:
            params, headers = super().pre_connect_hook(params, headers)
            del headers["Authorization"]
            return params, headers

    monkeypatch.setattr(libcloud.GCENodeDriver, "connectionCls", Connection)
    return libcloud.GCENodeDriver("user", "key", project=emulator.project, datacenter=ZONE)
