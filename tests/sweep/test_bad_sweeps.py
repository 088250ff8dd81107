"""Bad input of a sweep gets one message before an instance exists, and no traceback."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gce_backend.emulator import Fault

from .conftest import CHECKOUT
from .test_sweeps import PROGRAM, runs

pytestmark = [pytest.mark.flow, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "app.py", "-m", "hydra/launcher=gce"]


def project(cloud: Any, *, own_nodes: bool) -> None:
    """The small program; with `machine` and `gce` in its own configuration, or without."""
    home = cloud.directory = shutil.copytree(PROGRAM, cloud.directory / "project")
    if own_nodes:
        for group in ("machine", "gce"):
            shutil.copytree(CHECKOUT / "conf" / group, Path(home) / group)
        groups = "defaults: [{machine: n1-standard-2}, {gce: default}, _self_]\n"
        config = Path(home) / "config.yaml"
        config.write_text(f"{groups}{config.read_text()}")


#: The words, whether the program's own configuration has `machine` and `gce`, and the message.
WRONG = {
    "a later job's limit": (["gce.max_hours=1,-1"], True, "job 1 (gce.max_hours=-1): gce.max_"),
    "a zone without a later job's machine": (
        ["machine=n1-standard-2,a100", "gce.zones=[europe-west1-b]"],
        True,
        "is not offered in europe-west1-b",
    ),
    "a cost that pays for nothing": (["gce.max_cost_usd=9,0.001"], True, "does not even pay for"),
    "jobs of two buckets": (["gce.bucket=one,another"], True, "job 1 (gce.bucket=another)"),
    "a word for a number": (["x=2,three"], False, "x: expected a number like the default 1"),
    "a fraction": (["how=well", "x=1.5"], False, "expected a whole number like the default 1"),
    "no instance at a time": (
        ["x=1,2", "hydra.launcher.gce={max_parallel:0}"],
        False,
        "gce.max_parallel=0",
    ),
    "no map": (["x=1,2", "hydra.launcher.gce=3"], False, "hydra.launcher.gce=3"),
    "no map of variables": (["x=1,2", "hydra.launcher.env=[A]"], False, "hydra.launcher.env=['A']"),
    "an unknown limit": (["x=1,2", "hydra.launcher.gce={max_hour:1}"], False, "'gce.max_hours'"),
    "no such machine": (["x=1,2", "hydra.launcher.machine=l5"], False, "Did you mean 'l4'"),
    "no direction": (
        ["x=1,2", "hydra.launcher.direction=max"],
        False,
        "hydra.launcher.direction=max",
    ),
    "no such sweep": (["x=1,2", "hydra.launcher.resume=that"], False, "that"),
    "no such bucket": (["x=1,2", "hydra.launcher.gce={bucket:none-such}"], False, "none-such"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_with_one_message_before_anything_exists(
    cloud: Any, name: str
) -> None:
    words, own_nodes, message = WRONG[name]
    project(cloud, own_nodes=own_nodes)

    code, output = cloud.run(*COMMAND, *words)

    assert code == 1, output
    assert message in output
    assert "Traceback" not in output
    assert cloud.inserts() == []
    assert all("gce.sweep.key" not in run.data.tags for run in every_run(cloud))


def every_run(cloud: Any) -> list[Any]:
    client = cloud.client
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return list(found)


@pytest.mark.parametrize(
    ("own_nodes", "advice"),
    [
        (True, "\n  the real cloud:  gce.bucket=BUCKET (or"),
        (False, "\n  the real cloud:  hydra.launcher.gce={bucket:BUCKET} (or"),
    ],
)
def test_advice_is_written_as_a_sweeps_words_are(cloud: Any, own_nodes: bool, advice: str) -> None:
    project(cloud, own_nodes=own_nodes)
    del cloud.environ["MLFLOW_GCE_BUCKET"]

    code, output = cloud.run(*COMMAND, "x=1,2")

    assert code == 1, output
    assert advice in output
    assert "-P " not in output
    assert "Traceback" not in output


def test_the_traceback_is_there_for_whoever_asks(cloud: Any) -> None:
    project(cloud, own_nodes=False)

    code, output = cloud.run(*COMMAND, "x=1.5", HYDRA_FULL_ERROR="1")

    assert code == 1
    assert "Traceback" in output
    assert "expected a whole number" in output


def test_a_job_that_gets_no_instance_ends_the_sweep_with_what_was_answered(cloud: Any) -> None:
    project(cloud, own_nodes=True)
    cloud.emulator.inject(Fault("forbidden", "instances.insert", times=None))

    code, output = cloud.run(*COMMAND, "x=1,2")

    assert code == 1, output
    assert "Required permission is missing" in output
    assert "Traceback" not in output
    parent, children = runs(cloud)
    assert [run.info.status for run in (parent, *children)] == ["FAILED"] * 3


#: The program with a client that breaks at its second job, once the first is this far.
BROKEN = """
import runpy
import time

from gce_backend.errors import TrackingError
from gce_backend.sweep.sweep import Sweep

add, jobs = Sweep.add, []

def add_the_first(sweep, job):
    jobs.append(job)
    if job.number == 0:
        return add(sweep, job)
    while not ({far_enough}):
        time.sleep(0.05)
    raise TrackingError("the store is on fire")

Sweep.add = add_the_first
runpy.run_path("app.py", run_name="__main__")
"""


def break_client(cloud: Any, far_enough: str) -> str:
    """What the client of a sweep of two prints when it breaks."""
    project(cloud, own_nodes=True)
    (cloud.directory / "broken.py").write_text(BROKEN.format(far_enough=far_enough))

    code, output = cloud.run(sys.executable, "broken.py", *COMMAND[2:], "x=1,2")

    assert code == 1, output
    assert "the store is on fire" in output
    assert "Traceback" not in output
    return str(output)


def test_a_client_that_breaks_says_what_goes_on_and_how_to_come_back(cloud: Any) -> None:
    output = break_client(cloud, "sweep.scheduler._running")

    parent, (child,) = runs(cloud)
    assert "delete themselves at the end: 0." in output
    assert f"mlflow-gce attach {parent.info.run_id}" in output
    code, output = cloud.mlflow_gce("attach", parent.info.run_id)
    assert code == 0, output
    assert cloud.client.get_run(child.info.run_id).info.status == "FINISHED"


def test_a_client_that_breaks_with_nothing_running_leaves_nothing_open(cloud: Any) -> None:
    cloud.emulator.inject(Fault("no_capacity", times=None))

    output = break_client(cloud, "jobs[0].refusals")

    parent, (child,) = runs(cloud)
    assert "none of its jobs runs" in output
    assert (parent.info.status, child.info.status) == ("FAILED", "FAILED")
    assert child.data.tags["gce.end_reason"] == "submit_failed"
