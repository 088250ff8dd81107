"""Compute Engine's calls against the emulator: retried, confirmed, and never doubled."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from gce_backend import compute as compute_module
from gce_backend.compute import Compute
from gce_backend.emulator import Emulator, Fault
from gce_backend.errors import (
    AlreadyExists,
    ComputeError,
    InstanceNotFound,
    InternalError,
    NoCapacity,
    NotOffered,
    OperationTimeout,
    PermissionDenied,
)

ZONE = "europe-west1-b"


@pytest.fixture(scope="module")
def _emulator():
    with Emulator(boot_seconds=0.02, shutdown_seconds=0.5) as running:
        yield running


@pytest.fixture
def emulator(_emulator):
    yield _emulator
    _emulator.clear_faults()
    for instance in _emulator.instances():
        _emulator.erase(instance["name"])


@pytest.fixture
def compute(emulator, monkeypatch):
    monkeypatch.setattr(compute_module, "_DELETE_PAUSES", (0.05, 0.05))
    return Compute(emulator.project, endpoint=emulator.compute_url)


_numbers = itertools.count()


def body(**scheduling):
    return {
        "name": f"vm-{next(_numbers)}",
        "machineType": f"zones/{ZONE}/machineTypes/n1-standard-2",
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": "projects/ubuntu-os-cloud/global/images/family/"
                    "ubuntu-2404-lts-amd64"
                },
            }
        ],
        "networkInterfaces": [{"network": "global/networks/default"}],
        "scheduling": scheduling,
    }


SPOT = {
    "provisioningModel": "SPOT",
    "instanceTerminationAction": "DELETE",
    "onHostMaintenance": "TERMINATE",
    "automaticRestart": False,
}
PASSING = ["rate_limit_exceeded", "too_many_requests", "internal_error", "bad_gateway"]
PASSING += ["unavailable", "reply_lost_before", "reply_lost_after"]


def inserts_of(emulator, name):
    made = [c for c in emulator.calls if c.name == "instances.insert"]
    return [c for c in made if name in str(c.body)]


@pytest.mark.matrix(cells=6)
@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("method", ["insert", "get", "delete", "aggregatedList"])
def test_what_passes_is_tried_again(emulator, compute, kind, method):
    """Every call, through every answer that passes: one instance, and then none."""
    emulator.inject(Fault(kind, f"instances.{method}"))
    machine = body()

    compute.insert(ZONE, machine)
    assert compute.get(ZONE, machine["name"])["status"] == "RUNNING"
    assert [zone for zone, _ in compute.list("name = " + machine["name"])] == [ZONE]
    compute.delete(ZONE, machine["name"])

    assert not compute.exists(ZONE, machine["name"])
    assert emulator.instances() == []


def test_a_delete_that_failed_in_its_operation_is_sent_again(emulator, compute):
    machine = body()
    compute.insert(ZONE, machine)
    emulator.inject(Fault("operation_fails", "instances.delete"))

    compute.delete(ZONE, machine["name"])

    assert emulator.instances() == []


def test_a_delete_that_keeps_failing_says_what_its_operation_said(emulator, compute):
    machine = body()
    compute.insert(ZONE, machine)
    emulator.inject(Fault("operation_fails", "instances.delete", times=None))

    with pytest.raises(ComputeError, match="INTERNAL_ERROR: Internal error"):
        compute.delete(ZONE, machine["name"])

    assert compute.exists(ZONE, machine["name"])


def test_a_refused_delete_is_not_repeated(emulator, compute):
    machine = body()
    compute.insert(ZONE, machine)
    emulator.inject(Fault("forbidden", "instances.delete", times=None))
    before = len(emulator.calls)

    with pytest.raises(PermissionDenied):
        compute.delete(ZONE, machine["name"])

    assert len([c for c in emulator.calls[before:] if c.method == "DELETE"]) == 1


def test_the_operations_of_a_preempted_instance_tell_of_it(emulator, compute):
    machine, other = body(**SPOT), body(**SPOT)
    compute.insert(ZONE, machine)
    compute.insert(ZONE, other)

    emulator.preempt(machine["name"])

    with pytest.raises(InstanceNotFound):
        compute.get(ZONE, machine["name"])
    kinds = [each["operationType"] for each in compute.operations_on(ZONE, machine["name"])]
    assert "compute.instances.preempted" in kinds
    (insert,) = compute.operations_on(ZONE, other["name"])
    assert (insert["operationType"], insert["status"]) == ("insert", "DONE")
    assert compute.operations_on(ZONE, "vm-never-made") == []


def test_a_stopped_instance_is_started_again(emulator, compute):
    machine = body()
    compute.insert(ZONE, machine)
    emulator.power_off(machine["name"])
    assert compute.get(ZONE, machine["name"])["status"] == "TERMINATED"

    compute.start(ZONE, machine["name"])

    assert compute.get(ZONE, machine["name"])["status"] == "RUNNING"


def test_two_who_set_an_attribute_at_the_same_time_both_do(emulator, compute):
    """Their operations overlap, and the slower one's ends with CONDITION_NOT_MET."""
    machine = body()
    compute.insert(ZONE, machine)
    emulator.inject(Fault("operation_slow", "instances.setMetadata", times=2, seconds=2))
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(compute.set_metadata, ZONE, machine["name"], key, "1") for key in "ab"]
        assert [each.result() for each in done] == [None, None]

    items = compute.get(ZONE, machine["name"])["metadata"]["items"]
    assert {item["key"] for item in items} >= {"a", "b"}


def test_an_instance_of_ours_that_is_there_already_is_adopted(emulator, compute):
    """The insert of a client that died, and another's for the same attempt."""
    machine = {**body(), "labels": {"mlflow-gce-run": "r1", "mlflow-gce-attempt": "1"}}
    compute.insert(ZONE, machine)

    compute.insert(ZONE, machine)
    with pytest.raises(AlreadyExists):
        compute.insert(ZONE, {**machine, "labels": {"mlflow-gce-run": "r2"}})

    assert len(emulator.instances()) == 1


def test_a_refusal_after_an_insert_without_an_answer_says_that_it_may_be_there(emulator, compute):
    """The permission, or the login, went between the two tries; the first one took effect."""
    machine = body()
    emulator.inject(Fault("reply_lost_after", "instances.insert"))
    emulator.inject(Fault("forbidden", "instances.insert", times=None))

    with pytest.raises(OperationTimeout, match="a try before it got no answer"):
        compute.insert(ZONE, machine)

    assert [each["name"] for each in emulator.instances()] == [machine["name"]]


def test_one_that_exists_and_cannot_be_looked_at_may_be_ours(emulator, compute):
    machine = body()
    compute.insert(ZONE, machine)
    emulator.inject(Fault("forbidden", "instances.get", times=None))

    with pytest.raises(OperationTimeout, match="it exists already"):
        compute.insert(ZONE, machine)


def test_no_capacity_is_no_matter_of_patience(emulator, compute):
    emulator.inject(Fault("no_capacity"))
    machine = body()

    with pytest.raises(NoCapacity):
        compute.insert(ZONE, machine)

    assert len(inserts_of(emulator, machine["name"])) == 1


def test_an_insert_that_breaks_off_inside_the_api_is_told_as_that(emulator, compute):
    emulator.inject(Fault("operation_fails", "instances.insert"))
    machine = body()

    with pytest.raises(InternalError, match="INTERNAL_ERROR: Internal error"):
        compute.insert(ZONE, machine)

    assert not compute.exists(ZONE, machine["name"])


def test_a_zone_without_the_machine_type_says_so(emulator, compute):
    elsewhere = body()
    elsewhere["machineType"] = f"zones/{ZONE}/machineTypes/h9-standard-1"

    with pytest.raises(NotOffered, match="'h9-standard-1' does not exist in zone"):
        compute.insert(ZONE, elsewhere)

    assert len(inserts_of(emulator, elsewhere["name"])) == 1
