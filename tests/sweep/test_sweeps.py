"""Sweeps of a small program, as a user starts them: python app.py -m … hydra/launcher=gce."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.flow

PROGRAM = Path(__file__).parent.parent / "projects" / "sweep"


@pytest.fixture
def sweep(cloud: Any) -> Any:
    """Run the program's sweep in the story's directory: (exit code, output)."""
    shutil.copytree(PROGRAM, cloud.directory / "project")
    cloud.directory = cloud.directory / "project"

    def run(*words: str, **options: Any) -> tuple[int, str]:
        command = [sys.executable, "app.py", "-m", "hydra/launcher=gce", "hydra.sweep.dir=out"]
        result: tuple[int, str] = cloud.run(*command, *words, **options)
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
