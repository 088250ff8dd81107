"""Agents that are killed and started again, instances that reboot, attempts that follow others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from typing import Any

import pytest

from gce_backend.agent.family import boot_id
from gce_backend.agent.state import ON_DISK

from .cloud import wait_for
from .instance import TestInstance
from .trainers import STEADY, UPLOADING

pytestmark = pytest.mark.flow  # real processes and servers

WAITING = "while [ ! -e over ]; do sleep 0.05; done"


def steps(records: list[dict[str, Any]]) -> list[int]:
    return [record["body"]["step"] for record in records if record["path"] == "runs/log-metric"]


def acknowledged(log: str) -> int:
    return int(log.partition("acknowledged ")[2].split()[0])


def test_a_killed_agent_finds_its_trainer_and_loses_no_metric(instance: TestInstance) -> None:
    instance.submit("python train.py", {"train.py": STEADY})
    instance.start()
    wait_for(lambda: len(steps(instance.journal)) > 5, "metrics are in the bucket")
    for _ in range(3):
        instance.kill()
        before = instance.root.joinpath("console").stat().st_size
        instance.start()
        wait_for(lambda size=before: len(instance.console) > size, "the agent says it is back")
    (instance.state / "work" / "enough").touch()

    status = instance.wait()

    assert (status["end_reason"], status["exit_code"], status["verified"]) == ("succeeded", 0, True)
    assert sorted(set(steps(instance.journal))) == list(range(1, acknowledged(instance.log) + 1))
    assert instance.log.count("step 1\n") == 1
    records = instance.journal
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert status["journal_records"] == len(records)


def test_a_trainer_that_ended_without_an_agent_keeps_its_exit_code(instance: TestInstance) -> None:
    instance.submit("touch started; while [ ! -e enough ]; do sleep 0.05; done; exit 4")
    instance.start()
    wait_for((instance.state / "work" / "started").exists, "the trainer has started")
    instance.kill()
    (instance.state / "work" / "enough").touch()
    wait_for((instance.state / "trainer" / "exit_code").exists, "the trainer has ended")
    instance.start()

    status = instance.wait()

    assert (status["end_reason"], status["exit_code"]) == ("exited_nonzero", 4)


def test_what_a_failed_host_did_not_keep_of_the_project_is_fetched_again(
    instance: TestInstance,
) -> None:
    """Else an empty program would end well, and the run as finished."""
    waiting = "import time; print('trains'); time.sleep(1); input()"
    instance.submit("python train.py", {"train.py": waiting})
    instance.start()
    wait_for(lambda: "trains" in instance.log, "the trainer has started")
    instance.reboot()
    memory = instance.state / "state.json"
    memory.write_text(
        json.dumps({**json.loads(memory.read_text()), "prepared_in": "the boot before this one"})
    )
    (instance.state / "work" / "train.py").write_text("")
    instance.start()

    status = instance.wait()

    assert status["end_reason"] == "exited_nonzero", "it has nothing to read"
    assert instance.log.count("trains\n") == 2


def test_the_project_is_on_the_disk_for_good_a_moment_after_the_start(
    instance: TestInstance,
) -> None:
    instance.submit("echo started >> starts; [ $(wc -l < starts) = 2 ] || sleep 60")
    instance.start()
    memory = instance.state / "state.json"
    wait_for(memory.exists, "the agent has begun")
    wait_for(lambda: f'"prepared_in": "{ON_DISK}"' in memory.read_text(), "it is there")
    wait_for((instance.state / "work" / "starts").exists, "the trainer has started")
    wait_for((instance.state / "trainer" / "process").exists, "the trainer is noted")
    instance.reboot()
    instance.start()

    assert instance.wait()["end_reason"] == "succeeded"


def test_an_agent_that_finds_its_trainer_has_the_project_kept_as_well(
    instance: TestInstance,
) -> None:
    instance.submit(WAITING)
    instance.start()
    wait_for((instance.state / "trainer" / "process").exists, "the trainer is noted")
    memory = instance.state / "state.json"
    wait_for(lambda: f'"prepared_in": "{ON_DISK}"' in memory.read_text(), "it is there")
    instance.kill()
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "prepared_in": boot_id()}))
    instance.start()

    wait_for(lambda: f'"prepared_in": "{ON_DISK}"' in memory.read_text(), "it is there again")
    (instance.state / "work" / "over").touch()
    assert instance.wait()["end_reason"] == "succeeded"


def test_a_reboot_starts_the_trainer_again_on_the_same_disk(instance: TestInstance) -> None:
    instance.submit("echo started >> starts; [ $(wc -l < starts) = 2 ] || sleep 60")
    instance.start()
    wait_for((instance.state / "work" / "starts").exists, "the trainer has started")
    wait_for((instance.state / "trainer" / "process").exists, "the trainer is noted")
    instance.reboot()
    instance.start()

    status = instance.wait()

    assert status["end_reason"] == "succeeded"
    assert instance.log.count("the trainer ended") == 1


def test_a_restart_after_the_end_deletes_and_does_nothing_else(instance: TestInstance) -> None:
    first = instance.run("echo once")
    instance.plane.calls.clear()
    instance.start()

    assert instance.wait() == first
    assert instance.plane.deleted
    assert instance.log.count("once\n") == 1


def test_a_new_disk_for_a_finished_attempt_trains_nothing(instance: TestInstance) -> None:
    first = instance.run("echo once")
    shutil.rmtree(instance.state)
    instance.start()

    assert instance.wait() == first
    assert instance.log.count("once\n") == 1


def test_a_second_attempt_continues_the_numbers_and_knows_the_first(
    instance: TestInstance,
) -> None:
    instance.submit("python train.py", {"train.py": STEADY})
    instance.start()
    wait_for(lambda: len(steps(instance.journal)) > 5, "metrics are in the bucket")
    instance.clean_up()  # preempted without a notice: the disk is lost
    shutil.rmtree(instance.state)
    earlier = {name: instance.bucket.get(name) for name in instance.bucket.names()}
    records = len(instance.journal)
    instance.submit("python train.py", {"train.py": HISTORY}, attempt=2)
    instance.start()

    status = instance.wait()

    assert (status["attempt"], status["end_reason"]) == (2, "succeeded"), instance.log
    history = json.loads(instance.log.partition("history ")[2].splitlines()[0])
    assert history == list(range(1, records + 1))
    assert [record["seq"] for record in instance.journal] == list(range(1, records + 2))
    assert status["journal_records"] == records + 1
    kept = [name for name in earlier if "/log/" in name or "/journal/" in name]
    assert all(instance.bucket.get(name) == earlier[name] for name in kept)


def test_a_training_goes_on_while_the_bucket_refuses_and_the_agent_dies(
    instance: TestInstance, front: Any
) -> None:
    instance.storage_url = front.url
    instance.submit("python train.py", {"train.py": STEADY})
    instance.start()
    wait_for(lambda: len(steps(instance.journal)) > 5, "metrics are in the bucket")
    front.refuse = lambda method, path: 503
    instance.kill()
    instance.start()
    wait_for(lambda: "the trainer went on" in instance.console, "the agent is back")
    log = instance.state / "run.log"
    seen = log.read_text().count("step ")
    wait_for(lambda: log.read_text().count("step ") > seen + 10, "the training goes on")
    (instance.state / "work" / "enough").touch()
    wait_for(lambda: "acknowledged" in log.read_text(), "the trainer has ended")
    assert instance.status is None
    front.refuse = lambda method, path: None

    status = instance.wait()

    assert status["verified"] and instance.plane.deleted
    assert sorted(set(steps(instance.journal))) == list(range(1, acknowledged(instance.log) + 1))


def test_an_artifact_never_reaches_the_bucket_before_what_was_logged_ahead_of_it(
    instance: TestInstance, front: Any
) -> None:
    """A lost disk must not leave a checkpoint behind whose steps' metrics went with the disk."""
    refused: list[str] = []

    def refuse_pieces(method: str, path: str) -> int | None:
        if method == "POST" and "ifGenerationMatch=0" in path:  # the log's and the journal's
            refused.append(path)
            return 503
        return None

    front.refuse = refuse_pieces
    instance.storage_url = front.url
    steady = STEADY.replace("while not", "while step < 3 or not")
    instance.submit(
        f"touch enough; python steady.py; python uploading.py checkpoint.bin=10; {WAITING}",
        {"steady.py": steady, "uploading.py": UPLOADING},
        env={"ARTIFACTS": f"{instance.bucket.name}/{instance.artifacts}"},
    )
    instance.start()
    checkpoint = f"{instance.artifacts}/checkpoint.bin"
    index = instance.state / "spool" / "index.jsonl"
    wait_for(lambda: index.exists() and "checkpoint.bin" in index.read_text(), "it is taken in")
    count = len(refused)
    wait_for(lambda: len(refused) > count + 4, "pieces are refused")
    assert instance.bucket.find(checkpoint) is None
    front.refuse = lambda method, path: None

    wait_for(lambda: instance.bucket.find(checkpoint), "the checkpoint is uploaded")

    assert steps(instance.journal) == [1, 2, 3]
    (instance.state / "work" / "over").touch()
    assert instance.wait()["verified"]


def test_uploads_that_the_bucket_refuses_are_tried_until_it_takes_them(
    instance: TestInstance, front: Any
) -> None:
    refused: list[float] = []

    def refuse(method: str, path: str) -> int | None:
        if method == "POST" and "uploadType=multipart" in path and "ifGen" not in path:
            refused.append(time.time())
            return (503, 429, 403, None)[min(len(refused), 10) // 3]
        return None

    front.refuse = refuse
    instance.storage_url = front.url
    instance.submit(
        f"{sys.executable} train.py a.bin=10 b.bin=20 c.bin=0",
        {"train.py": UPLOADING},
        env={"ARTIFACTS": f"{instance.bucket.name}/{instance.artifacts}"},
        require=["a.bin"],
    )
    instance.start()

    status = instance.wait()

    assert status["verified"] and len(refused) >= 10
    assert instance.bucket.get(f"{instance.artifacts}/b.bin") == b"x" * 20
    sizes = {
        item["name"].rpartition("/")[2]: item["size"]
        for item in instance.bucket.json(instance.paths.manifest)["objects"]
    }
    assert (sizes["a.bin"], sizes["b.bin"], sizes["c.bin"]) == (10, 20, 0)


def test_an_object_that_vanishes_before_the_proof_is_uploaded_again(
    instance: TestInstance,
) -> None:
    instance.submit(
        f"{sys.executable} train.py a.bin=10; touch uploaded; "
        "while [ ! -e enough ]; do sleep 0.05; done",
        {"train.py": UPLOADING},
        env={"ARTIFACTS": f"{instance.bucket.name}/{instance.artifacts}"},
    )
    instance.start()
    name = f"{instance.artifacts}/a.bin"
    wait_for(lambda: instance.bucket.find(name), "the artifact is in the bucket")
    instance.bucket.delete(name)
    (instance.state / "work" / "enough").touch()

    status = instance.wait()

    assert status["verified"]
    assert instance.bucket.get(name) == b"x" * 10


def test_sigterm_brings_what_there_is_to_the_bucket_and_ends_nothing(
    instance: TestInstance,
) -> None:
    """As at a shutdown: trainer and agent get it at the same time, and the disk may be lost."""
    instance.submit("python train.py", {"train.py": SAVING})
    instance.start()
    wait_for(lambda: "ready" in instance.log, "the trainer is ready")
    pid = int((instance.state / "trainer" / "process").read_text().splitlines()[1].split()[0])
    assert instance.process is not None
    os.killpg(pid, signal.SIGTERM)
    instance.process.terminate()
    instance.process.wait(30)

    assert instance.process.returncode == 128 + signal.SIGTERM
    assert instance.status is None and not instance.plane.deleted
    assert [record["body"]["key"] for record in instance.journal] == ["last"]
    assert "saved\n" in instance.log


# Writes a last tag when it is told to end.
SAVING = """
import json, os, signal, sys, time, urllib.request
def leave(number, frame):
    body = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": "last", "value": "1"}
    request = urllib.request.Request(
        os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/set-tag",
        data=json.dumps(body).encode(), method="POST")
    request.add_header("Authorization", "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"])
    urllib.request.urlopen(request, timeout=5).read()
    print("saved", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""

# The second attempt's trainer: what does the relay know of the first?
HISTORY = """
import json, os, urllib.request
def call(method, path, data=None):
    request = urllib.request.Request(
        os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/" + path, data=data, method=method)
    request.add_header("Authorization", "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"])
    return json.loads(urllib.request.urlopen(request, timeout=5).read())
run = os.environ["MLFLOW_RUN_ID"]
points = call("GET", f"metrics/get-history?run_id={run}&metric_key=loss")["metrics"]
print("history", json.dumps([point["step"] for point in points]), flush=True)
call("POST", "runs/set-tag", json.dumps({"run_id": run, "key": "a", "value": "b"}).encode())
"""
