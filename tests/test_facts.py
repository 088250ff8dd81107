"""The instance's facts on the run: numbers that sort, and nothing invented."""

import shutil

import pytest
from mlflow.tracking import MlflowClient

from gce_backend import facts
from gce_backend.agent import usage
from gce_backend.agent.paths import RunPaths
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

STATUS = {
    "attempt": 1,
    "phases": [
        {"phase": "fetching", "at": 1030.0},
        {"phase": "environment", "at": 1031.0},
        {"phase": "running", "at": 1090.5},
        {"phase": "fetching", "at": 1095.0},  # the agent was killed, and started again
        {"phase": "collecting", "at": 1190.75},
    ],
    "ended_at": 1190.5,
    "written_at": 1200.0,
    "image": "projects/p/global/images/family-v1",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store):
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"


@pytest.fixture
def run_id(store):
    return MlflowClient(store).create_run("0").info.run_id


def submission(run_id, attempt=1, usd_per_hour=0.36):
    return Submission(
        run_id, "p", "z-1-a", "name", "b", RunPaths("x", run_id), "", 2e9, 1000.0, usd_per_hour,
        attempt=attempt,
    )  # fmt: skip


def test_seconds_of_each_part_come_from_the_status():
    assert usage.seconds(STATUS, submission("r").created_at) == {
        "gce/seconds_boot": 30.0,
        "gce/seconds_environment": 60.5,
        "gce/seconds_training": 100.0,
        "gce/seconds_saving": 9.5,
        "gce/seconds_instance": 200.0,
    }


def test_parts_that_were_not_reached_are_left_out():
    early = {"phases": STATUS["phases"][:1], "ended_at": None, "written_at": 1050.0}

    assert usage.seconds(early, submission("r").created_at) == {
        "gce/seconds_boot": 30.0,
        "gce/seconds_instance": 50.0,
    }


def test_facts_are_on_the_run_once_however_often_they_are_written(store, run_id):
    for _ in range(2):
        facts.record(Tracking(store), submission(run_id), STATUS)

    run = MlflowClient(store).get_run(run_id)
    assert run.data.metrics["gce/cost_usd"] == pytest.approx(0.02)
    assert run.data.metrics["gce/seconds_training"] == 100.0
    assert run.data.tags["gce.image"] == "projects/p/global/images/family-v1"
    (point,) = MlflowClient(store).get_metric_history(run_id, "gce/seconds_boot")
    assert (point.step, point.timestamp) == (1, 1_200_000)


def test_the_cost_is_that_of_all_attempts(store, run_id):
    tracking = Tracking(store)
    facts.record(tracking, submission(run_id), STATUS)
    facts.record(tracking, submission(run_id, attempt=2), {**STATUS, "attempt": 2})
    facts.record(tracking, submission(run_id, attempt=2), {**STATUS, "attempt": 2})

    history = MlflowClient(store).get_metric_history(run_id, "gce/cost_usd")
    assert [(m.step, m.value) for m in history] == [(1, 0.02), (2, 0.04)]


@pytest.mark.parametrize("status", [None, {**STATUS, "attempt": 3}])
def test_without_the_attempts_own_status_nothing_is_written(store, run_id, status):
    facts.record(Tracking(store), submission(run_id), status)

    assert MlflowClient(store).get_run(run_id).data.metrics == {}


def test_without_a_list_price_there_is_no_cost(store, run_id):
    facts.record(Tracking(store), submission(run_id, usd_per_hour=None), STATUS)

    assert usage.COST not in MlflowClient(store).get_run(run_id).data.metrics
