"""Sweeps of a small program, as a user starts them: python app.py -m … hydra/launcher=gce."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import wait_until

pytestmark = [pytest.mark.flow, pytest.mark.rotating(one_in=5), pytest.mark.timeout(900)]

COMMAND = [sys.executable, "app.py", "-m", "hydra/launcher=gce", "hydra.sweep.dir=out"]
PROGRAM = Path(__file__).parent.parent / "projects" / "sweep"


@pytest.fixture
def sweep(cloud: Any) -> Any:
    """Run the program's sweep in the story's directory: (exit code, output)."""
    shutil.copytree(PROGRAM, cloud.directory / "project")
    cloud.directory = cloud.directory / "project"

    def run(*words: str, **options: Any) -> tuple[int, str]:
        result: tuple[int, str] = cloud.run(*COMMAND, *words, seconds=400, **options)
        return result

    return run


def runs(cloud: Any) -> tuple[Any, list[Any]]:
    """The sweep's parent run, and its children by their number."""
    client = cloud.client
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run for run in found if "gce.sweep.key" in run.data.tags]
    children = [run for run in found if run is not parent]
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    return parent, sorted(children, key=lambda run: int(run.data.tags["gce.sweep.number"]))


def table(cloud: Any, parent: Any) -> list[dict[str, str]]:
    name = f"{parent.info.artifact_uri.partition(cloud.bucket + '/')[2]}/sweep/table.csv"
    return list(csv.DictReader(io.StringIO(cloud.read(name).decode())))


def test_every_job_ends_in_its_own_way_and_the_rest_is_done_by_the_same_command(
    cloud: Any, sweep: Any
) -> None:
    wish = cloud.directory.parent / "wish"
    words = ["how=well,object,odd,exit,abort,kill", "x=3", f"wish={wish}"]

    code, output = sweep(*words)

    assert code == 1
    assert "OddError: this and that" in output and "in main" in output
    parent, children = runs(cloud)
    statuses = {run.data.params["how"]: run.info.status for run in children}
    ended_well = {"well": "FINISHED", "object": "FINISHED"}
    assert statuses == {**dict.fromkeys(["odd", "exit", "abort", "kill"], "FAILED"), **ended_well}
    assert parent.info.status == "FAILED"
    rows = table(cloud, parent)
    assert [row["how"] for row in rows] == ["well", "object", "odd", "exit", "abort", "kill"]
    assert rows[0]["value"] == "6.0"
    assert {row["machine"] for row in rows} == {"n1-standard-2"}
    assert "137" in rows[5]["error"]
    out = cloud.directory / "out"
    for number, how in enumerate(statuses):
        assert (out / str(number) / "note.txt").read_text() == f"{how} 3"
        overrides = yaml.safe_load((out / str(number) / ".hydra" / "overrides.yaml").read_text())
        assert overrides == [f"how={how}", "x=3", f"wish={wish}"]
    assert yaml.safe_load((out / "multirun.yaml").read_text())["hydra"]["mode"] == "MULTIRUN"

    code, output = sweep(*words)

    assert "2 jobs are finished" in output
    assert len(cloud.inserts()) == 6 + 4


def test_a_sweep_can_be_left_and_come_back_to(cloud: Any, sweep: Any) -> None:
    leaving = ["hydra.launcher.wait=false", "hydra.launcher.gce={max_parallel:2}"]
    code, output = sweep("x=1,2,3", *leaving)
    assert code == 1
    assert "3 jobs, and 2 may run at once" in output
    assert cloud.inserts() == []

    code, output = sweep("x=1,2", *leaving)

    assert code == 0, output
    parent, children = runs(cloud)
    assert parent.info.status == "RUNNING"
    assert f"mlflow-gce attach {parent.info.run_id}" in output
    code, output = cloud.mlflow_gce("attach", parent.info.run_id)
    assert code == 0, output
    parent, children = runs(cloud)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert [row["value"] for row in table(cloud, parent)] == ["2.0", "4.0"]
    assert parent.data.tags["gce.sweep.highest"].startswith("4 by job 1 (x=2)")
    assert (cloud.directory / "out" / "1" / "note.txt").read_text() == "well 2"


#: Calls of the cloud's that a sweep of three jobs makes, the instances' included, in eighths.
MOMENTS = [range(first, first + 30) for first in range(1, 241, 30)]


@pytest.mark.matrix(cells=1)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda calls: f"call-{calls[0]}-{calls[-1]}")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
def test_jobs_outlive_their_client_and_the_same_command_does_the_rest(
    cloud: Any, sweep: Any, number: signal.Signals, moment: range
) -> None:
    draw = random.Random(f"{os.environ['MATRIX_SEED']} {number} {moment}")
    words = ["x=1,2,3", "hydra.launcher.gce={max_parallel:2}"]
    before, calls = len(cloud.emulator.calls), draw.choice(moment)
    process = cloud.spawn(*COMMAND, *words)
    wait_until(
        lambda: len(cloud.emulator.calls) - before >= calls or process.poll() is not None,
        seconds=200,
        what=f"call {calls} of the sweep",
    )
    is_running = bool(cloud.emulator.instances())

    process.send_signal(number)

    output, _ = process.communicate(timeout=100)
    if "(3 of 3 have ended)" in output and (ended := runs(cloud))[0].info.status == "FINISHED":
        # The moment lay behind the sweep's end; the same command would begin another one.
        assert [run.info.status for run in ended[1]] == ["FINISHED"] * 3
        return
    assert process.returncode != 0, output
    if is_running and number is signal.SIGINT:
        assert "mlflow-gce attach" in output
    finished = set(completed(cloud))
    if draw.random() < 0.5:  # else the same command finds them running
        wait_until(lambda: not cloud.emulator.instances(), seconds=150, what="the end of the jobs")
    code, output = sweep(*words)
    assert code == 0, output
    parent, children = runs(cloud)
    assert parent.info.status == "FINISHED"
    done = [run for run in children if run.info.status == "FINISHED"]
    assert [run.data.params["x"] for run in done] == ["1", "2", "3"]
    assert {run.info.status for run in children} <= {"FINISHED", "FAILED"}
    assert [row["value"] for row in table(cloud, parent)] == ["2.0", "4.0", "6.0"]
    assert sorted(completed(cloud)) == sorted(run.info.run_id for run in done)
    assert finished <= {run.info.run_id for run in done}


def completed(cloud: Any) -> list[str]:
    """The runs whose function ran to its end, by what their instances left in the bucket."""
    results = [name for name in cloud.objects() if name.endswith("hydra/result.json")]
    told = {name.split("/")[-4]: json.loads(cloud.read(name)) for name in results}
    return [run for run, result in told.items() if result["status"] == "COMPLETED"]


def test_without_multirun_it_is_said_that_nothing_is_launched(cloud: Any, sweep: Any) -> None:
    code, output = cloud.run(sys.executable, "app.py", "hydra/launcher=gce")

    assert code == 0
    assert "hydra/launcher=gce does nothing without -m" in output
    assert cloud.inserts() == []


def test_a_secret_is_not_passed_through_hydras_files(cloud: Any, sweep: Any) -> None:
    code, output = sweep("x=1,2", "hydra.job.env_copy=[A_TOKEN]", A_TOKEN="in-the-clear")

    assert code == 1
    assert "hydra.job.env_copy=['A_TOKEN']" in output
    assert "in-the-clear" not in output
    assert cloud.inserts() == []
