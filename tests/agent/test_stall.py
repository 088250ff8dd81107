"""Trainers that hang."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gce_backend.agent.stall import StallWatch

from .cloud import wait_for
from .instance import TestInstance

pytestmark = pytest.mark.flow  # real processes and servers

SECOND = 1 / 60  # in minutes


def tags(instance: TestInstance) -> list[tuple[str, Any]]:
    return [
        (record["path"], record["body"]["key"])
        for record in instance.journal
        if record["path"] in ("runs/set-tag", "runs/delete-tag")
    ]


def test_a_trainer_without_a_sign_of_life_is_told_of_until_it_moves_again(
    instance: TestInstance,
) -> None:
    instance.submit(
        "until [ -e enough ]; do sleep 0.2; done; echo on; until [ -e end ]; do sleep 0.2; done",
        stall_minutes=2 * SECOND,
    )
    instance.start()
    wait_for(lambda: ("runs/set-tag", "gce.stalled") in tags(instance), "the tag is set")
    wait_for(lambda: "-P gce.stall_action=end" in instance.log, "the log says what can be done")
    assert "no output, nothing logged and no CPU time of the trainer since" in instance.log

    (instance.state / "work" / "enough").touch()
    wait_for(lambda: ("runs/delete-tag", "gce.stalled") in tags(instance), "the tag is gone")
    (instance.state / "work" / "end").touch()

    assert instance.wait()["end_reason"] == "succeeded"


def test_it_is_ended_where_that_is_wished(instance: TestInstance) -> None:
    status = instance.run("echo x > gained; sleep 60", stall_minutes=SECOND, stall_end=True)

    assert (status["end_reason"], status["verified"]) == ("stalled", True)
    assert status["message"] == "the trainer showed no sign of life for 0.0166667 minutes"
    assert instance.bucket.get(f"{instance.artifacts}/workdir/gained") == b"x\n"


@pytest.mark.parametrize(
    "life",
    [
        "while :; do :; done",
        "while sleep 0.3; do echo on; done",
        'setsid --wait bash -c "while :; do :; done"',  # torchrun's workers are so
    ],
)
def test_one_that_computes_or_prints_is_alive(instance: TestInstance, life: str) -> None:
    instance.run(
        f"timeout -s KILL 7 bash -c '{life}'; true",
        stall_minutes=3 * SECOND,
        stall_end=True,
    )

    assert instance.status["end_reason"] == "succeeded"
    assert tags(instance) == []


def test_a_trainer_that_has_just_ended_is_not_a_stalled_one() -> None:
    """Its processes' CPU time leaves with them, a moment before the watch is told to stop."""
    asked, over, told = 0, threading.Event(), list[float | None]()

    def cpu_seconds() -> float:
        nonlocal asked
        asked += 1
        if asked > 30:  # one window and a half: it has computed, and is gone
            over.wait(10)
        return float(asked) if asked < 28 else 0.0

    watch = StallWatch(lambda: 0, cpu_seconds, 0.2, told.append)
    watch.start()
    wait_for(lambda: asked > 30, "it has looked after the trainer's end")
    over.set()
    watch.stop()

    assert told == []
