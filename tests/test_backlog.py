"""Which runs the bucket has more of than the store, and what the user is told of them."""

import time

import pytest
from journals import make_run
from mlflow.tracking import MlflowClient

from gce_backend import backlog
from gce_backend.console import Console
from gce_backend.lifecycle import EndReason
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

pytestmark = pytest.mark.flow  # a real storage server


@pytest.fixture
def run(tmp_path, empty_store, storage):
    made = make_run(tmp_path, empty_store, storage)
    made.tracking = Tracking(made.uri)
    submission = Submission(
        made.run_id, "p", "z-1-a", f"mlflow-{made.run_id}-1", storage.bucket, made.paths,
        made.uri, 2e9, 1e9,
    )  # fmt: skip
    made.tracking.set_tags(made.run_id, submission.tags())
    return made


def journal(run, seconds_ago):
    body = {"run_id": run.run_id, "key": "k", "value": "v"}
    at = round((time.time() - seconds_ago) * 1000)
    run.put_journal([{"seq": 1, "at": at, "path": "runs/set-tag", "method": "POST", "body": body}])


def status(run, seconds_ago=60, attempt=1):
    at = time.time() - seconds_ago
    run.storage.put_json(run.paths.status, {"attempt": attempt, "written_at": at})


def unsynced(run):
    return [one.run_id for one in backlog.unsynced_runs(run.tracking)]


def wanted(run):
    return backlog.unsynced_runs(run.tracking, by_the_way=False)


def test_a_run_whose_journal_waits_is_found_until_it_is_applied(run):
    assert unsynced(run) == []
    journal(run, seconds_ago=60)

    assert unsynced(run) == [run.run_id]
    run.tracking.set_tags(run.run_id, {"gce.journal.applied": "1"})
    assert unsynced(run) == []


def test_what_has_just_come_is_left_to_whoever_follows(run):
    journal(run, seconds_ago=1)

    assert unsynced(run) == []


def test_whoever_wants_all_gets_also_what_has_just_come(run):
    journal(run, seconds_ago=1)

    assert [one.run_id for one in wanted(run)] == [run.run_id]
    run.tracking.set_tags(run.run_id, {"gce.journal.applied": "1"})
    assert wanted(run) == []
    status(run, seconds_ago=1)
    assert [one.run_id for one in wanted(run)] == [run.run_id]


def test_whoever_wants_all_hears_of_a_bucket_that_does_not_answer(run, monkeypatch):
    monkeypatch.setattr(backlog, "_RETRY_SECONDS", 0)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")  # nothing listens there

    assert unsynced(run) == []
    assert [one.run_id for one in wanted(run)] == [run.run_id]


def test_a_run_whose_end_the_store_does_not_know_is_found(run):
    status(run)
    assert unsynced(run) == [run.run_id]

    run.tracking.terminate(run.run_id, EndReason.SUCCEEDED)

    assert unsynced(run) == []


def test_an_earlier_attempts_end_is_not_the_runs(run):
    run.tracking.set_tags(run.run_id, {"gce.attempt": "2"})
    status(run, attempt=1)

    assert unsynced(run) == []


def test_a_run_that_ended_unproven_and_has_more_is_found(run):
    run.tracking.terminate(run.run_id, EndReason.RESULTS_UNVERIFIED)
    journal(run, seconds_ago=60)

    assert unsynced(run) == [run.run_id]


def test_deleted_runs_and_those_of_others_are_left_alone(run):
    MlflowClient(run.uri).create_run(run.experiment_id)
    journal(run, seconds_ago=60)
    MlflowClient(run.uri).delete_run(run.run_id)

    assert unsynced(run) == []


def test_the_notice_names_the_command(run):
    journal(run, seconds_ago=60)
    found = backlog.unsynced_runs(run.tracking)

    assert backlog.notice([]) == ""
    assert backlog.notice(found) == (
        "1 run has metrics in the bucket that the tracking store lacks. "
        f"Run: mlflow-gce sync {run.run_id}"
    )
    assert backlog.notice(found * 2).endswith("Run: mlflow-gce sync --all")


def test_a_command_tells_by_the_way_of_other_runs_and_never_fails_for_it(run, capsys):
    journal(run, seconds_ago=60)

    backlog.warn(run.tracking, Console(), but=run.run_id)
    assert capsys.readouterr().err == ""
    backlog.warn(run.tracking, Console())
    assert f"Run: mlflow-gce sync {run.run_id}" in capsys.readouterr().err
    backlog.warn(Tracking("http://127.0.0.1:1"), Console())  # nothing listens there
    assert capsys.readouterr().err == ""
