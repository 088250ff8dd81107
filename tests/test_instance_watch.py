"""What became of an instance: told by the API's own words, and by nothing else."""

import dataclasses
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from submissions import submission

from gce_backend.errors import ComputeError, InstanceNotFound
from gce_backend.instance_watch import InstanceWatch
from gce_backend.lifecycle import EndReason
from gce_backend.presence import is_dead, this_client

HERE = submission(deadline=float("inf"), created_at=0.0, client=this_client())


def at(number):
    return f"2026-11-01T00:00:0{number}.000-07:00"


class Api:
    def __init__(self, status, operations=()):
        self.status, self.operations = status, operations

    def get(self, zone, name):
        if isinstance(self.status, Exception):
            raise self.status
        return {"status": self.status}

    def operations_on(self, zone, name):
        return [
            {"operationType": kind, "status": "DONE", "insertTime": at(number), **more}
            for number, (kind, more) in enumerate(self.operations)
        ]


GONE = InstanceNotFound("404")
INSERTED = ("insert", {})


def loss(status, *operations, here=HERE):
    return InstanceWatch(here, Api(status, operations)).look()


@pytest.mark.parametrize("status", ["PROVISIONING", "STAGING", "RUNNING", "STOPPING", "NEW WORD"])
def test_an_instance_that_is_there_is_not_lost(status):
    assert loss(status, INSERTED) is None


def test_an_api_that_does_not_answer_is_no_news_and_is_asked_less_often():
    watch = InstanceWatch(HERE, Api(ComputeError("503")))

    assert watch.look() is None
    assert watch._pause > 5


CASES = [
    # status, what was done to it -> reason, taken, stopped
    (GONE, [INSERTED, ("compute.instances.preempted", {})], EndReason.PREEMPTED, True, False),
    (GONE, [INSERTED], EndReason.INSTANCE_LOST, True, False),
    (GONE, [INSERTED, ("delete", {})], EndReason.INSTANCE_LOST, False, False),
    (
        "TERMINATED",
        [INSERTED, ("compute.instances.hostError", {})],
        EndReason.INSTANCE_LOST,
        True,
        True,
    ),
    ("TERMINATED", [INSERTED, ("stop", {})], EndReason.INSTANCE_LOST, False, True),
    (
        "TERMINATED",
        [INSERTED, ("compute.instances.hostError", {}), ("start", {}), ("stop", {})],
        EndReason.INSTANCE_LOST,
        False,
        True,
    ),
]


@pytest.mark.parametrize(("status", "operations", "reason", "taken", "stopped"), CASES)
def test_a_loss_is_told_by_its_operations(status, operations, reason, taken, stopped):
    found = loss(status, *operations)

    assert (found.reason, found.taken, found.stopped) == (reason, taken, stopped)


def test_it_went_when_its_operation_says_and_not_when_somebody_looks():
    went = datetime(2026, 11, 1, 7, 0, 1, tzinfo=UTC).timestamp()
    later = {"endTime": "2026-11-01T00:00:05.000-07:00"}

    assert loss(GONE, INSERTED, ("delete", {})).at == went
    assert loss(GONE, INSERTED, ("compute.instances.preempted", later)).at == went + 4
    assert loss(GONE, INSERTED).at == 0, "nobody knows"
    here = dataclasses.replace(HERE, created_at=7.0)
    assert loss(GONE, ("insert", {"error": {"errors": []}}), here=here).at == 7.0, "it never was"


def test_one_that_compute_engine_deleted_at_its_deadline():
    for found in (
        loss(GONE, INSERTED, ("delete", {"user": "system"})),
        loss(GONE, INSERTED, ("delete", {}), here=dataclasses.replace(HERE, deadline=1.0)),
    ):
        assert (found.reason, found.taken) == (EndReason.DEADLINE, False)


@pytest.fixture
def dead_client():
    code = "from gce_backend.presence import this_client; print(this_client())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def test_an_insert_that_may_still_come_is_waited_for():
    here = dataclasses.replace(HERE, created_at=time.time() - 600)
    assert loss(GONE, here=here) is None, "its client lives"
    assert loss(GONE, ("insert", {"status": "RUNNING"})) is None


def test_one_whose_client_died_before_the_insert_was_never_made(dead_client):
    here = dataclasses.replace(HERE, client=dead_client, created_at=time.time())
    assert loss(GONE, here=here) is None, "what it sent may be on its way"

    found = loss(GONE, here=dataclasses.replace(here, created_at=time.time() - 60))

    assert found.reason is EndReason.SUBMIT_FAILED


def test_a_client_of_another_machine_has_its_time():
    elsewhere = dataclasses.replace(HERE, client="elsewhere 1 1", created_at=1e12)

    assert loss(GONE, here=elsewhere) is None
    assert loss(GONE, here=dataclasses.replace(elsewhere, created_at=1.0)).reason is (
        EndReason.SUBMIT_FAILED
    )


def test_a_client_that_is_refused_in_one_zone_asks_in_the_next():
    failed = ("insert", {"error": {"errors": []}, "httpErrorStatusCode": 503})
    here = dataclasses.replace(HERE, created_at=time.time() - 60)

    assert loss(GONE, failed, here=here) is None
    second = dataclasses.replace(here, attempt=2)
    assert loss(GONE, failed, here=second).reason is EndReason.SUBMIT_FAILED, "its claim tells"


def test_one_that_was_seen_while_its_insert_failed_never_was():
    watch = InstanceWatch(HERE, Api("PROVISIONING"))
    assert watch.look() is None
    watch._compute = Api(GONE, [("insert", {"error": {"errors": []}}), ("delete", {})])
    watch.soon()

    assert watch.look().reason is EndReason.SUBMIT_FAILED


def test_an_insert_that_failed_made_nothing():
    assert loss(GONE, ("insert", {"error": {"errors": []}, "httpErrorStatusCode": 503})).reason is (
        EndReason.SUBMIT_FAILED
    )


def test_presence_knows_this_process_and_ids_that_are_used_again(dead_client):
    assert not is_dead(this_client())
    assert is_dead(dead_client)
    host, pid, _ = this_client().split(" ")
    assert is_dead(f"{host} {pid} 1"), "our id, but another process's start"
    assert not is_dead("")
    assert not is_dead(f"another-host {os.getpid()} 1")
