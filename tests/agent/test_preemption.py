"""Spot instances that are taken back, and attempts that go on from what they left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable

import pytest

from gce_backend.agent.stop import CANCELLED, PREEMPTED, Stop

from .cloud import wait_for
from .instance import TestInstance
from .trainers import DEAF, OBEDIENT, UPLOADING

pytestmark = pytest.mark.flow  # real processes and servers


def notice(instance: TestInstance) -> None:
    instance.plane.preempt()


def shutdown(instance: TestInstance) -> None:
    """The machine's own SIGTERM to all reaches the trainer before the agent has asked."""
    instance.plane.preempted = True
    terminate_all(instance)


def take_back(instance: TestInstance) -> None:
    """With its disk; what follows is the next attempt's."""
    instance.plane.preempt()
    assert instance.wait()["end_reason"] == "preempted"
    instance.plane.preempted = False
    shutil.rmtree(instance.state)


def terminate_all(instance: TestInstance) -> None:
    pid = int((instance.state / "trainer" / "process").read_text().splitlines()[1].split()[0])
    os.killpg(pid, signal.SIGTERM)
    assert instance.process is not None
    instance.process.terminate()


@pytest.mark.parametrize("way", [notice, shutdown])
def test_the_trainer_saves_and_the_run_ends_with_a_status(
    instance: TestInstance, way: Callable[[TestInstance], None]
) -> None:
    instance.submit("exec python train.py", {"train.py": OBEDIENT})
    instance.start()
    wait_for(lambda: "ready" in instance.log, "the trainer is ready")

    way(instance)
    status = wait_for(lambda: instance.status, "status.json")

    assert (status["end_reason"], status["verified"]) == ("preempted", True)
    assert "takes this spot instance back" in instance.log
    assert instance.bucket.get(f"{instance.artifacts}/workdir/saved.txt") == b"saved"


def test_a_trainer_that_does_not_hear_costs_ten_seconds_at_most(instance: TestInstance) -> None:
    instance.submit("exec python train.py", {"train.py": DEAF}, grace_seconds=60)
    instance.start()
    wait_for(lambda: "ready" in instance.log, "the trainer is ready")
    told = time.monotonic()

    instance.plane.preempt()
    status = instance.wait()

    assert (status["end_reason"], status["exit_code"]) == ("preempted", 137)
    assert time.monotonic() - told < 25
    assert instance.plane.deleted


def test_only_a_preemption_limits_what_comes_after_the_training() -> None:
    cancelled, preempted = Stop(), Stop()
    cancelled.set(CANCELLED)
    preempted.set(PREEMPTED)

    assert cancelled.limit(5e9) == 5e9
    assert preempted.limit(5e9) == pytest.approx(time.time() + 25, abs=5)


def test_the_next_attempt_goes_on_from_what_was_saved(instance: TestInstance) -> None:
    """Files, log and journal; a step that is done again is in the history once."""
    files = {"train.py": LOGGING, "project/notes.txt": "as shipped\n"}
    command = (
        "mkdir -p checkpoints; echo one > checkpoints/own.pt; python ../train.py 1 2 3; sleep 60"
    )
    instance.submit(command, files, workdir="project")
    instance.bucket.put(f"{instance.artifacts}/checkpoints/last.pt", b"a checkpoint")
    instance.start()
    wait_for(lambda: "logged 3" in instance.log, "the trainer has logged")
    take_back(instance)
    before = instance.log

    status = instance.run(
        'cat checkpoints/own.pt checkpoints/last.pt notes.txt; echo "[$MLFLOW_GCE_ATTEMPT]"; '
        "python ../train.py 3 4; exit 1",
        files,
        workdir="project",
        attempt=2,
    )

    assert (status["attempt"], status["end_reason"], status["verified"]) == (
        2,
        "exited_nonzero",
        True,
    )
    assert instance.log.startswith(before)
    assert "one\na checkpointas shipped\n[2]\n" in instance.log
    assert "2 files of the earlier attempt were put back" in instance.log
    logged = [r["body"] for r in instance.journal if r["path"] == "runs/log-metric"]
    assert [(body["step"], body["value"]) for body in logged] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 0.25),
    ]
    listed = {item["name"] for item in instance.bucket.json(instance.paths.manifest)["objects"]}
    assert not [name for name in listed if "/workdir/" in name], "nothing of it is uploaded again"


def test_a_checkpoint_that_is_an_artifact_too_is_put_back_where_it_lay(
    instance: TestInstance,
) -> None:
    command = (
        "if [ -e ckpt.pt ]; then echo found; exit 0; fi; printf xxx > ckpt.pt; "
        f"ARTIFACTS={instance.bucket.name}/{instance.artifacts} "
        "python train.py models/newest.pt=3; echo ready; sleep 60"
    )
    instance.submit(command, {"train.py": UPLOADING})
    instance.start()
    wait_for(lambda: "ready" in instance.log, "the checkpoint is logged")
    take_back(instance)

    status = instance.run(command, {"train.py": UPLOADING}, attempt=2)

    assert (status["end_reason"], "found" in instance.log) == ("succeeded", True)


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_trainer_that_ends_because_the_machine_stops_has_not_ended(
    instance: TestInstance, code: int
) -> None:
    """Whatever it makes of SIGTERM: when the machine is back, it goes on."""
    instance.submit(
        f'trap "exit {code}" TERM; mkdir first || {{ echo second; exit; }}; '
        "echo ready; while :; do sleep 0.1; done"
    )
    instance.start()
    wait_for(lambda: "ready" in instance.log, "the trainer is ready")

    terminate_all(instance)
    assert instance.process is not None
    instance.process.wait(60)
    assert instance.status is None
    instance.reboot()
    instance.start()

    assert instance.wait()["end_reason"] == "succeeded"
    assert "second" in instance.log


def test_a_trainer_started_again_after_a_reboot_leaves_one_history_too(
    instance: TestInstance,
) -> None:
    """Also when the agent dies after that."""
    instance.submit(
        "if mkdir first; then python train.py 1 2 3; sleep 60; fi; echo second; "
        "until [ -e enough ]; do sleep 0.1; done; python train.py 3 4",
        {"train.py": LOGGING},
    )
    instance.start()
    wait_for(lambda: "logged 3" in instance.log, "the first trainer has logged")
    instance.reboot()
    instance.start()
    wait_for(lambda: "second" in instance.log, "the second trainer has begun")
    instance.kill()
    instance.start()
    wait_for(lambda: "the trainer went on" in instance.console, "the agent is back")
    (instance.state / "work" / "enough").touch()

    assert instance.wait()["end_reason"] == "succeeded"
    logged = [r["body"]["step"] for r in instance.journal if r["path"] == "runs/log-metric"]
    assert logged == [1, 2, 3, 4]


# Logs the steps given as arguments, at the present time.
LOGGING = """
import json, os, sys, time, urllib.request
for step in map(int, sys.argv[1:]):
    body = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": "loss", "value": 1 / step,
            "timestamp": time.time_ns() // 1000000, "step": step}
    request = urllib.request.Request(
        os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric",
        data=json.dumps(body).encode(), method="POST")
    request.add_header("Authorization", "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"])
    urllib.request.urlopen(request, timeout=5).read()
    print("logged", step, flush=True)
"""
