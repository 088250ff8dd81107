"""Whole attempts, from the metadata attribute to the deletion, with real processes."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from gce_backend.agent.compute import Instance
from gce_backend.agent.metadata import MetadataServer

from .cloud import ControlPlane, md5_of, wait_for
from .instance import TestInstance
from .pythons import found
from .trainers import DEAF, OBEDIENT, UPLOADING

PYTHONS = found()

pytestmark = pytest.mark.flow  # real processes and servers


def test_a_run_ends_verified_and_the_instance_deletes_itself(instance: TestInstance) -> None:
    status = instance.run("python train.py; echo to stderr >&2")

    assert (status["end_reason"], status["exit_code"]) == ("succeeded", 0)
    assert status["verified"] and status["missing"] == []
    assert [entry["phase"] for entry in status["phases"]] == [
        "fetching",
        "environment",
        "running",
        "collecting",
    ]
    assert "hello\n" in instance.log and "to stderr\n" in instance.log
    assert instance.plane.deleted
    manifest = instance.bucket.json(instance.paths.manifest)
    listed = {item["name"]: md5_of(item) for item in instance.bucket.items(instance.paths.log_dir)}
    assert listed == {item["name"]: item["md5"] for item in manifest["objects"]}


# Only those that are here: there is nothing to say of the others.
@pytest.mark.parametrize("version", PYTHONS)
def test_the_zip_runs_isolated_on_every_python(instance: TestInstance, version: str) -> None:
    instance.submit("python train.py")
    instance.start(PYTHONS[version])

    status = instance.wait()

    assert (status["end_reason"], status["verified"]) == ("succeeded", True)


@pytest.mark.parametrize("version", PYTHONS)
def test_the_agent_imports_nothing_but_the_standard_library(agent_zip: Path, version: str) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(agent_zip)!r}]; import agent.main; "
        "print(*sorted({n.partition('.')[0] for n in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [PYTHONS[version], "-I", "-S", "-c", code], capture_output=True, text=True
    )

    assert (done.stdout.split(), done.stderr) == (["__main__", "agent"], "") or (
        done.stdout.split(),
        done.stderr,
    ) == (["agent"], "")


@pytest.mark.parametrize(
    ("command", "code"), [("exit 3", 3), ("kill -SEGV $$", 139), ("kill -9 $$", 137), ("nope", 127)]
)
def test_a_bad_end_keeps_its_exit_code_and_the_instance_still_goes(
    instance: TestInstance, command: str, code: int
) -> None:
    status = instance.run(command)

    assert (status["end_reason"], status["exit_code"]) == ("exited_nonzero", code)
    assert status["verified"] and instance.plane.deleted


def test_a_failed_run_leaves_what_its_directory_gained(instance: TestInstance) -> None:
    instance.run(
        "mkdir -p out __pycache__; echo 1 > out/checkpoint; echo 2 > __pycache__/x.pyc; "
        "echo changed > notes.txt; exit 1",
        {"train.py": "", "notes.txt": "as shipped\n"},
    )

    root = f"{instance.artifacts}/workdir"
    assert instance.bucket.names(root) == [f"{root}/notes.txt", f"{root}/out/checkpoint"]
    assert instance.bucket.get(f"{root}/notes.txt") == b"changed\n"


def test_names_that_are_no_text_are_saved_as_well(instance: TestInstance) -> None:
    status = instance.run("echo 1 > $'half-\\xe4'; echo 2 > $'l\\xc3\\xa4ngs'; exit 1")

    assert status["verified"] and instance.plane.deleted
    root = f"{instance.artifacts}/workdir"
    assert instance.bucket.names(root) == [f"{root}/half-\\xe4", f"{root}/längs"]


def test_names_that_no_bucket_takes_keep_nobody_from_leaving(instance: TestInstance) -> None:
    """Cloud Storage refuses them for good, which an emulator does not."""
    deep = "/".join(["d" * 200] * 5)
    status = instance.run(f"echo 1 > $'line\\nfeed'; mkdir -p {deep}; echo 2 > {deep}/deep; exit 1")

    assert status["verified"], instance.log
    root = f"{instance.artifacts}/workdir"
    assert instance.bucket.names(root) == [f"{root}/line\\x0afeed"]
    assert "/deep of the working directory was left out: its name would have 10" in instance.log


def test_a_deletion_that_is_accepted_and_fails_is_asked_for_again(plane: ControlPlane) -> None:
    plane.deletions_that_fail = 2
    metadata = MetadataServer(plane.address)
    compute = plane.environment["CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"]
    one = Instance(metadata, metadata.identity(), compute)

    one.delete_itself(time.time() + 60)
    one.stay_until_gone(time.time() + 60, again_after=0.1)

    assert [method for method, _ in plane.calls].count("DELETE") == 3
    one.stay_until_gone(time.time() - 1)  # time is up


def test_the_command_gets_its_variables_and_its_directory(instance: TestInstance) -> None:
    instance.run(
        'echo "[$MLFLOW_RUN_ID $MLFLOW_EXPERIMENT_ID $NOTE $(basename $PWD)]"; '
        'echo "[$MLFLOW_TRACKING_URI]"; printf "\\377\\000 as it is"',
        {"project/train.py": ""},
        workdir="project",
        env={"NOTE": 'it\'s "so" $HOME\n'},
    )

    raw = instance.bucket.joined(instance.paths.log_dir)
    assert b'[0123456789abcdef0123456789abcdef 7 it\'s "so" $HOME\n project]' in raw
    assert b"[http://127.0.0.1:" in raw
    assert b"\xff\x00 as it is\n[mlflow-gce] the trainer ended" in raw


def test_cancelling_lets_the_trainer_save_and_collects_it(instance: TestInstance) -> None:
    instance.submit("python train.py", {"train.py": OBEDIENT})
    instance.start()
    wait_for(lambda: "ready" in instance.log, "the trainer is ready")

    instance.cancel()
    status = instance.wait()

    assert (status["end_reason"], status["exit_code"]) == ("cancelled", 0)
    assert instance.bucket.get(f"{instance.artifacts}/workdir/saved.txt") == b"saved"
    assert status["verified"] and instance.plane.deleted


SLOW_TO_SAVE = """
import signal, sys, time
def leave(number, frame):
    time.sleep(1.5)
    open("saved.txt", "w").write("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "command",
    [
        "python train.py",
        "python train.py | cat",
        "python train.py 2>&1 | tee out.log; echo done",
        "if true; then python train.py && echo done; fi",
        "bash run.sh",
    ],
)
def test_whatever_shell_stands_around_it_a_trainer_has_its_time_to_save(
    instance: TestInstance, command: str
) -> None:
    instance.submit(command, {"train.py": SLOW_TO_SAVE, "run.sh": "python train.py\necho done\n"})
    instance.start()
    wait_for(lambda: "ready" in instance.log, "the trainer is ready")

    instance.cancel()

    assert instance.wait()["end_reason"] == "cancelled"
    assert instance.bucket.get(f"{instance.artifacts}/workdir/saved.txt") == b"saved"


def test_what_a_trainer_leaves_in_a_session_of_its_own_ends_with_it(
    instance: TestInstance,
) -> None:
    """Else what it goes on printing would keep the log, and the instance, for ever."""
    talker = "while :; do echo still here; done"
    status = instance.run(f"setsid bash -c '{talker}' & echo $! > pid; sleep 1")

    assert (status["end_reason"], status["verified"]) == ("succeeded", True)
    assert instance.plane.deleted
    wait_for(lambda: not _runs(int((instance.state / "work" / "pid").read_text())), "it is gone")


def test_the_run_does_not_depend_on_who_reads_its_console(instance: TestInstance) -> None:
    """What runs startup scripts goes away early in a shutdown, and with it the other end."""
    instance.submit("sleep 1; exit 3")
    reading, writing = os.pipe()
    os.close(reading)
    instance.start(console=writing)
    os.close(writing)

    status = instance.wait()

    assert (status["end_reason"], status["verified"]) == ("exited_nonzero", True)
    assert "exit code 3" in instance.log and instance.plane.deleted


def test_a_cancel_object_in_the_bucket_is_the_second_way(instance: TestInstance) -> None:
    instance.submit("sleep 60")
    instance.bucket.put(instance.paths.cancel, b"")
    instance.start()

    assert instance.wait()["end_reason"] == "cancelled"


def test_a_trainer_that_does_not_hear_is_killed_with_all_its_children(
    instance: TestInstance,
) -> None:
    instance.submit("exec python train.py", {"train.py": DEAF}, grace_seconds=0.5)
    instance.start()
    wait_for(lambda: "ready" in instance.log, "the trainer is ready")
    child = int(instance.log.partition("ready ")[2].split()[0])

    instance.cancel()
    status = instance.wait()

    assert (status["end_reason"], status["exit_code"]) == ("cancelled", 137)
    wait_for(lambda: not _runs(child), "the trainer's child is gone")


def test_the_deadline_ends_the_trainer_in_time_to_save(instance: TestInstance) -> None:
    deadline = time.time() + 6
    instance.submit("python train.py", {"train.py": OBEDIENT}, deadline=deadline, grace_seconds=2)
    instance.start()

    status = instance.wait()

    assert status["end_reason"] == "deadline"
    assert status["ended_at"] < deadline
    assert instance.bucket.get(f"{instance.artifacts}/workdir/saved.txt") == b"saved"


def test_a_missing_required_artifact_keeps_the_instance(instance: TestInstance) -> None:
    deadline = time.time() + 6
    instance.submit(
        "python train.py model.pt=10; echo $ARTIFACTS",
        {"train.py": UPLOADING},
        env={"ARTIFACTS": f"{instance.bucket.name}/{instance.artifacts}"},
        require=["model.pt", "metrics.json"],
        deadline=deadline,
        grace_seconds=1,
    )
    instance.start()
    status = wait_for(lambda: instance.status, "status.json is there before the deadline")
    written = time.time()
    instance.wait()

    assert written < deadline < time.time()
    assert status["end_reason"] == "succeeded" and not status["verified"]
    assert status["missing"] == ["required artifact 'metrics.json' was not logged"]
    assert not instance.plane.deleted


def test_an_instance_that_may_not_delete_itself_powers_off(instance: TestInstance) -> None:
    instance.plane.may_delete = False
    status = instance.run("sleep 2")

    assert status["verified"] and not status["may_delete"]
    assert instance.bucket.json(instance.paths.heartbeat)["may_delete"] is False
    assert (instance.root / "powered_off").exists()
    assert "may not delete itself" in instance.log


def test_a_damaged_bundle_is_refused_and_told(instance: TestInstance) -> None:
    spec = instance.submit("true")
    instance.bucket.put(spec["bundle"]["object"], b"not what was promised")
    instance.start()

    status = instance.wait()

    assert status["end_reason"] == "agent_failed" and status["exit_code"] is None
    assert spec["bundle"]["sha256"] in status["message"]
    assert status["verified"] and instance.plane.deleted


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
