"""Coming back to a sweep whose client died: what is so is said, and nothing stays open for good."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.blueprint import Blueprint
from gce_backend.config import load_settings
from gce_backend.instance import Agent
from gce_backend.lifecycle import EndReason
from gce_backend.presence import this_client
from gce_backend.project import Source
from gce_backend.storage import Storage, parse_uri
from gce_backend.submission import Submission
from gce_backend.sweep.attach import attach_sweep
from gce_backend.sweep.store import (
    DIRECTORY_TAG,
    JOB_TAG,
    KEY_TAG,
    NUMBER_TAG,
    SWEEP_TAG,
    SWEEPER_TAG,
    SweepStore,
)
from gce_backend.tracking import CLIENT_TAG

pytestmark = pytest.mark.flow

DEAD = f"{socket.gethostname()} 99999999 1"
ELSEWHERE = "another-machine 1 1"


class Left:
    """A sweep as its dead client left it in store and bucket."""

    def __init__(self, cloud: Any) -> None:
        self.settings = load_settings(Path("/dev/null"))
        self.storage = Storage(cloud.bucket, project=self.settings.project)
        self.store = SweepStore(cloud.tracking_uri)
        self.experiment = self.store.choose_experiment(
            "0", project_name="left", settings=self.settings
        )
        directory = str(cloud.directory / "out")
        tags = {KEY_TAG: "k", SWEEP_TAG: "app", DIRECTORY_TAG: directory}
        parent = self.store.create_parent(self.experiment, "sweep-app", tags, ["x=0,1,2"])
        self.parent = str(parent.info.run_id)

    def job(self, number: int, client: str = DEAD) -> str:
        """A job whose client has made its run, and nothing besides."""
        return self.store.create_child(
            self.experiment,
            self.parent,
            Source(Path("project"), "project"),
            name="app",
            run_name=f"job {number}",
            overrides=[f"x={number}"],
            settings=self.settings,
            tags={JOB_TAG: str(number), NUMBER_TAG: str(number), CLIENT_TAG: client},
        )

    def completed(self, number: int) -> str:
        run_id = self.job(number)
        paths = RunPaths("mlflow-gce", run_id)
        Blueprint(self.settings, Agent(self.storage.bucket, "agent.pyz", "0" * 64)).save(
            self.storage, paths
        )
        place = (self.settings.project, "europe-west1-b", f"mlflow-{run_id}-1")
        bucket, uri = self.storage.bucket, self.store.uri
        submission = Submission(run_id, *place, bucket, paths, uri, 4e9, 0.0, client=DEAD)
        self.store.set_tags(run_id, submission.tags())
        _, artifacts = parse_uri(str(self.store.get_run(run_id).info.artifact_uri))
        told = {"status": "COMPLETED", "value": float(number)}
        self.storage.put_json(f"{artifacts}/hydra/result.json", told)
        self.store.terminate(run_id, EndReason.SUCCEEDED)
        return run_id

    def attach(self) -> int | None:
        return attach_sweep(self.parent, self.store.uri)

    def status(self, run_id: str) -> str:
        return str(self.store.get_run(run_id).info.status)

    def table(self) -> str:
        _, artifacts = parse_uri(str(self.store.get_run(self.parent).info.artifact_uri))
        return (self.storage.read(f"{artifacts}/sweep/table.csv") or b"").decode()


@pytest.fixture
def left(environment: Any) -> Left:
    return Left(environment)


def test_a_sweep_whose_client_died_before_any_instance_is_closed(
    left: Left, capsys: pytest.CaptureFixture[str]
) -> None:
    run = left.job(0)

    assert left.attach() == 1

    told = "".join(capsys.readouterr())
    assert f"job 0 (run {run}) never had an instance" in told
    assert f"sweep {left.parent}: nothing of it runs" in told
    assert (left.status(run), left.status(left.parent)) == ("FAILED", "FAILED")
    assert left.store.get_run(run).data.tags["gce.end_reason"] == "submit_failed"


@pytest.mark.parametrize(
    ("client", "status"),
    [(this_client(), "RUNNING"), (ELSEWHERE, "RUNNING"), (DEAD, "FAILED")],
    ids=["alive here", "perhaps alive elsewhere", "dead"],
)
def test_a_sweep_that_has_no_job_yet_is_closed_only_without_a_client(
    left: Left, client: str, status: str
) -> None:
    left.store.set_tags(left.parent, {SWEEPER_TAG: client})

    assert left.attach() == 1

    assert left.status(left.parent) == status


def test_what_had_ended_before_stands_in_the_table(left: Left) -> None:
    left.completed(0)
    left.job(1)

    assert left.attach() == 1

    header, first, second = left.table().splitlines()
    assert header.startswith("job,status,value,x")
    assert first.startswith("0,COMPLETED,0.0,0")
    assert second.startswith("1,FAILED,,1")
    assert left.status(left.parent) == "FAILED"


def test_a_sweep_that_only_was_not_closed_is_finished(left: Left) -> None:
    runs = [left.completed(number) for number in (0, 1)]

    assert left.attach() == 0

    assert [left.status(run) for run in (*runs, left.parent)] == ["FINISHED"] * 3
    assert "gce.sweep.highest" in left.store.get_run(left.parent).data.tags


@pytest.mark.parametrize("client", [this_client(), ELSEWHERE], ids=["here", "elsewhere"])
def test_a_client_that_may_be_at_work_keeps_its_sweep(
    left: Left, client: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left.completed(0)
    run = left.job(1, client)

    assert left.attach() == 1

    told = "".join(capsys.readouterr())
    assert f"job 1 (run {run}) has no instance yet" in told
    assert (left.status(run), left.status(left.parent)) == ("SCHEDULED", "RUNNING")


def test_a_job_without_its_blueprint_is_left_to_be_followed_by_itself(
    left: Left, capsys: pytest.CaptureFixture[str]
) -> None:
    run = left.completed(0)
    left.store.set_running(run)
    left.storage.delete(RunPaths("mlflow-gce", run).blueprint)

    assert left.attach() == 1

    assert f"Follow it by itself: mlflow-gce attach {run}" in "".join(capsys.readouterr())
    assert (left.status(run), left.status(left.parent)) == ("RUNNING", "RUNNING")


def test_a_sweep_that_ended_is_only_told_of(left: Left) -> None:
    left.completed(0)
    left.store.close(left.parent, "FINISHED", {})

    assert left.attach() == 0
    assert left.table() == ""
