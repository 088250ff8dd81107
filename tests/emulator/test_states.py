"""The two tables: what follows what, and that nothing else does."""

from __future__ import annotations

from itertools import product

import pytest

from gce_backend.emulator.clock import Clock
from gce_backend.emulator.images import images
from gce_backend.emulator.instances import NEXT, Instance, Status
from gce_backend.emulator.operations import NEXT as OPERATION_NEXT
from gce_backend.emulator.operations import IllegalTransition, Operation, OperationStatus

from .conftest import ZONE, body


def instance() -> Instance:
    return Instance(
        Clock(), "p", ZONE, body("vm"), images()[0], address="127.1.0.1", cpu_platform="x"
    )


def test_every_status_has_a_row() -> None:
    assert set(NEXT) == set(Status)
    assert set(OPERATION_NEXT) == set(OperationStatus)


@pytest.mark.parametrize("status", list(Status))
def test_terminated_is_reachable_from_every_status(status: Status) -> None:
    reached, todo = set(), [status]
    while todo:
        for following in NEXT[todo.pop()] - reached:
            reached.add(following)
            todo.append(following)

    assert Status.TERMINATED in reached


@pytest.mark.parametrize(("before", "after"), list(product(Status, Status)))
def test_an_instance_takes_exactly_the_steps_of_the_table(before: Status, after: Status) -> None:
    subject = instance()
    subject.status = before

    if after in NEXT[before]:
        subject.advance(after)
        assert subject.status is after
    else:
        with pytest.raises(IllegalTransition):
            subject.advance(after)
        assert subject.status is before


@pytest.mark.parametrize(("before", "after"), list(product(OperationStatus, OperationStatus)))
def test_an_operation_takes_exactly_the_steps_of_the_table(
    before: OperationStatus, after: OperationStatus
) -> None:
    subject = Operation(Clock(), "p", "global", "insert", "projects/p", "1")
    subject.status = before

    if after in OPERATION_NEXT[before]:
        subject.advance(after)
        assert subject.status is after
    else:
        with pytest.raises(IllegalTransition):
            subject.advance(after)


def test_a_stop_clears_the_deadline_and_a_start_sets_it_anew() -> None:
    subject = instance()
    subject.body["scheduling"] = {"maxRunDuration": {"seconds": "60"}}
    for status in (Status.STAGING, Status.RUNNING):
        subject.advance(status)
    assert subject.termination_at is not None

    for status in (Status.STOPPING, Status.TERMINATED):
        subject.advance(status)

    assert subject.termination_at is None
