"""Each fault over the control endpoint, and what a client that nobody here wrote makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest
import requests
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import compute_v1, storage

from gce_backend.emulator import Emulator, FaultKind

from .conftest import ZONE, Api, body, eventually
from .test_methods import Clients
from .test_ssh import connect, key, metadata, port

__all__ = ["key"]  # the fixture

pytestmark = pytest.mark.flow

VM = {"zone": ZONE, "instance": "vm"}


class Control:
    """The control endpoint, as a program in another language would use it."""

    def __init__(self, emulator: Emulator) -> None:
        self._url = emulator.compute_url.replace("/compute/v1/", "/_emulator")

    def inject(self, kind: str, **fields: Any) -> None:
        url = f"{self._url}/faults"
        requests.post(url, json={"kind": kind, **fields}, timeout=30).raise_for_status()

    def faults(self) -> Any:
        return requests.get(f"{self._url}/faults", timeout=30).json()

    def clear(self) -> None:
        requests.delete(f"{self._url}/faults", timeout=30).raise_for_status()

    def advance(self, seconds: float) -> None:
        url = f"{self._url}/clock"
        requests.post(url, json={"advance": seconds}, timeout=30).raise_for_status()

    def act(self, name: str, action: str) -> requests.Response:
        return requests.post(f"{self._url}/instances/{name}/{action}", timeout=30)


@pytest.fixture
def control(emulator: Emulator) -> Control:
    return Control(emulator)


@pytest.fixture
def clients(emulator: Emulator) -> Clients:
    return Clients(emulator)


def insert(clients: Clients, **changes: Any) -> Any:
    wanted = compute_v1.Instance.from_json(json.dumps(body("vm", **changes)))
    return clients.call("instances.insert", zone=ZONE, instance_resource=wanted)


@pytest.mark.parametrize("kind", list(FaultKind))
def test_every_kind_is_taken_listed_and_cleared(control: Control, kind: FaultKind) -> None:
    fault = {"method": "a.b", "resource": "c", "times": 3, "seconds": 1.5}
    control.inject(kind, **fault)
    listed = control.faults()
    control.clear()

    assert listed == [{"kind": kind.value, **fault}]
    assert control.faults() == []


@pytest.mark.parametrize(
    ("kind", "raised", "reason"),
    [
        ("rate_limit_exceeded", exceptions.Forbidden, "rateLimitExceeded"),
        ("too_many_requests", exceptions.TooManyRequests, "rateLimitExceeded"),
        ("internal_error", exceptions.InternalServerError, "backendError"),
        ("bad_gateway", exceptions.BadGateway, "backendError"),
        ("unavailable", exceptions.ServiceUnavailable, "backendError"),
        ("forbidden", exceptions.Forbidden, "forbidden"),
        ("quota_exceeded", exceptions.Forbidden, "quotaExceeded"),
    ],
)
def test_a_spoiled_answer_is_the_clients_exception(
    control: Control, clients: Clients, kind: str, raised: type[Exception], reason: str
) -> None:
    control.inject(kind, method="instances.insert")
    with pytest.raises(raised) as caught:
        insert(clients)

    assert caught.value.errors[0]["reason"] == reason  # type: ignore[attr-defined]
    assert list(clients.call("instances.list", zone=ZONE)) == []


def test_a_bulk_insert_without_capacity(control: Control, clients: Clients) -> None:
    control.inject("insufficient_capacity")
    with pytest.raises(exceptions.ServiceUnavailable) as caught:
        clients.call(
            "regionInstances.bulkInsert",
            region="europe-west1",
            bulk_insert_instance_resource_resource=compute_v1.BulkInsertInstanceResource(count=1),
        )

    assert caught.value.errors[0]["reason"] == "insufficientCapacity"


@pytest.mark.parametrize(("kind", "made"), [("reply_lost_before", 0), ("reply_lost_after", 1)])
def test_a_lost_reply_is_a_broken_connection(
    control: Control, clients: Clients, kind: str, made: int
) -> None:
    control.inject(kind, method="instances.insert")
    with pytest.raises(requests.ConnectionError):
        insert(clients)

    assert len(list(clients.call("instances.list", zone=ZONE))) == made


def test_a_slow_answer_outlasts_the_clients_patience(control: Control, clients: Clients) -> None:
    control.inject("slow", method="instances.list", seconds=2)
    client = compute_v1.InstancesClient(**clients.options)
    with pytest.raises(requests.ReadTimeout):
        client.list(project=clients.project, zone=ZONE, timeout=0.2)


@pytest.mark.parametrize(
    ("kind", "code", "status", "says"),
    [
        ("no_capacity", "ZONE_RESOURCE_POOL_EXHAUSTED", 503, "enough resources"),
        ("no_capacity_with_details", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", 503, "enough"),
        ("quota_region", "QUOTA_EXCEEDED", 403, "in region europe-west1"),
        ("quota_global", "QUOTA_EXCEEDED", 403, "GPUS_ALL_REGIONS"),
        ("operation_fails", "INTERNAL_ERROR", 500, "Internal error"),
    ],
)
def test_a_failed_operation_carries_its_error(
    control: Control, clients: Clients, kind: str, code: str, status: int, says: str
) -> None:
    control.inject(kind, method="instances.insert", resource=f"{ZONE}/vm")
    done = clients.finish(insert(clients))

    assert [error.code for error in done.error.errors] == [code]
    assert says in done.error.errors[0].message
    assert done.http_error_status_code == status
    assert list(clients.call("instances.list", zone=ZONE)) == []


def test_a_slow_operation_ends_by_the_clock(control: Control, clients: Clients) -> None:
    control.inject("operation_slow", method="instances.insert", seconds=3600)
    operation = insert(clients)
    named = {"zone": ZONE, "operation": operation.name}
    running = compute_v1.Operation.Status.RUNNING
    eventually(lambda: clients.call("zoneOperations.get", **named).status == running, "it runs")

    control.advance(3601)

    assert clients.finish(operation).status == compute_v1.Operation.Status.DONE


def test_an_operation_that_never_ends(control: Control, clients: Clients) -> None:
    control.inject("operation_stuck", method="instances.insert")
    operation = insert(clients)
    control.advance(7 * 86400)
    client = compute_v1.ZoneOperationsClient(**clients.options)
    where = {"project": clients.project, "zone": ZONE, "operation": operation.name}
    with pytest.raises(requests.ReadTimeout):
        client.wait(**where, timeout=0.5)

    assert clients.call("instances.get", **VM).status == "PROVISIONING"


def test_a_delete_fails_as_often_as_asked(control: Control, clients: Clients) -> None:
    clients.finish(insert(clients))
    control.inject("operation_fails", method="instances.delete", times=2)
    failed = [
        bool(clients.finish(clients.call("instances.delete", **VM)).error.errors) for _ in range(3)
    ]

    assert failed == [True, True, False]
    with pytest.raises(exceptions.NotFound):
        clients.call("instances.get", **VM)


def test_no_ssh_and_no_startup_script(control: Control, api: Api, key: Any) -> None:
    control.inject("no_ssh", resource="mute")
    control.inject("no_startup_script", resource="idle")
    keys = metadata(key)["items"]
    items = [*keys, {"key": "startup-script", "value": "echo started"}]
    instances = {name: api.create(name, metadata={"items": items}) for name in ("mute", "idle")}
    connect(instances["idle"], key).close()  # only then would its script have run
    eventually(lambda: "started" in api.serial("mute").splitlines(), "the other's script")

    assert "started" not in api.serial("idle").splitlines()
    host = instances["mute"]["networkInterfaces"][0]["networkIP"]
    with pytest.raises(paramiko.ssh_exception.NoValidConnectionsError):
        paramiko.SSHClient().connect(host, port=port(), username="alice", timeout=5)


def test_a_network_that_is_cut_and_mended(control: Control, api: Api, key: Any) -> None:
    instance = api.create(metadata=metadata(key))
    client = connect(instance, key)
    control.inject("network_cut", resource=f"{ZONE}/vm", times=None)
    eventually(lambda: not client.get_transport().is_active(), "it broke")  # type: ignore[union-attr]
    with pytest.raises((paramiko.SSHException, EOFError)):
        connect(instance, key)

    control.clear()

    connect(instance, key).close()


@pytest.fixture
def bucket(emulator: Emulator) -> Iterator[storage.Bucket]:
    client = storage.Client(
        project=emulator.project,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": emulator.storage_url},
    )
    yield client.bucket("bucket")
    client.close()


def test_a_bucket_that_refuses(control: Control, bucket: storage.Bucket) -> None:
    control.inject("forbidden", method="storage.objects.*", resource="bucket/no/*", times=None)
    bucket.blob("yes/1").upload_from_string("x")
    with pytest.raises(exceptions.Forbidden):
        bucket.blob("no/1").upload_from_string("x")


def test_a_bucket_that_is_slow(control: Control, bucket: storage.Bucket) -> None:
    control.inject("slow", method="storage.objects.*", resource="bucket/*", seconds=2)
    with pytest.raises(requests.Timeout):
        bucket.blob("slow").upload_from_string("x", timeout=0.3, retry=None)

    bucket.blob("slow").upload_from_string("x", timeout=30, retry=None)


def test_the_control_endpoint_preempts_and_powers_off(
    control: Control, clients: Clients, api: Api
) -> None:
    for name in ("spot", "maintained"):
        api.create(name, scheduling={"provisioningModel": "SPOT"})
    api.create("vm")
    clients.do("instances.simulateMaintenanceEvent", zone=ZONE, instance="maintained")
    control.act("spot", "preempt").raise_for_status()
    control.act("vm", "power-off").raise_for_status()
    found = {each.name: each.status for each in clients.call("instances.list", zone=ZONE)}
    kinds = [each.operation_type for each in clients.call("zoneOperations.list", zone=ZONE)]

    assert found == dict.fromkeys(("maintained", "spot", "vm"), "TERMINATED")
    preempted = "compute.instances.preempted"
    assert kinds[:3] == ["compute.instances.hostError", preempted, preempted]
    assert control.act("nobody", "preempt").status_code == 400
