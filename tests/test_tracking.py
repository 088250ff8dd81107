"""The MLflow side: an experiment that instances can write to, and a run that says the truth."""

import os
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from gce_backend.agent.paths import RunPaths
from gce_backend.config import load_settings
from gce_backend.errors import TrackingError
from gce_backend.lifecycle import EndReason
from gce_backend.project import EntryPoint, Source
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

LOCATION = "gs://a-bucket/mlflow-gce/experiments"


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "a-project")
    monkeypatch.setenv("MLFLOW_GCE_BUCKET", "a-bucket")
    return load_settings(tmp_path, parameters={"machine": "l4"})


@pytest.fixture
def uri(tmp_path, empty_store):
    file = tmp_path / "mlflow.db"
    file.write_bytes(empty_store.read_bytes())
    return f"sqlite:///{file}"


@pytest.fixture
def client(uri):
    return MlflowClient(uri)


def choose(uri, experiment_id, settings, name="a project"):
    return Tracking(uri).choose_experiment(experiment_id, project_name=name, settings=settings)


def test_a_name_that_mlflows_filters_cannot_hold_is_nobodys(uri):
    with pytest.raises(TrackingError, match="no run of this backend has the id or name"):
        Tracking(uri).find_run('it\'s "x"')


def test_a_store_whose_driver_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymysql", None)

    with pytest.raises(
        TrackingError, match=r"mysql\+pymysql://h/x cannot be .*pymysql.*driver"
    ) as e:
        Tracking("mysql+pymysql://me:secret@h/x")

    assert "secret" not in str(e.value)


@pytest.mark.parametrize(
    ("path", "why"), [("", "is a directory"), ("/file/x.db", "file cannot be")]
)
def test_a_path_where_no_database_can_be_is_refused_at_once(tmp_path, path, why):
    (tmp_path / "file").touch()

    with pytest.raises(TrackingError, match=f"cannot be opened: {tmp_path}.*{why}"):
        Tracking(f"sqlite:///{tmp_path}{path}")


def test_a_store_in_a_directory_that_takes_no_files_can_be_read(uri, client, monkeypatch):
    client.get_experiment("0")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere

    with pytest.raises(TrackingError, match="no run"):
        Tracking(uri).find_run("a name that nothing has")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("a text that is longer than nothing " * 100)

    with pytest.raises(TrackingError, match=r"cannot be opened: .*file is not a database"):
        Tracking(f"sqlite:///{tmp_path}/mlflow.db")


def test_without_a_named_experiment_one_named_after_the_project_is_made_once(uri, client, settings):
    first = choose(uri, "0", settings)
    second = choose(uri, "0", settings)

    assert first.experiment_id == second.experiment_id
    assert (first.name, first.location) == ("a project", f"{LOCATION}/a-project")
    assert "created" in first.notice
    assert second.notice is None
    found = client.get_experiment(first.experiment_id)
    assert found.artifact_location == f"{LOCATION}/a-project"


def test_an_experiment_in_a_bucket_is_taken_as_it_is(uri, client, settings):
    named = client.create_experiment("named", artifact_location="gs://other/place")

    assert choose(uri, named, settings).location == "gs://other/place"


def test_an_empty_experiment_elsewhere_is_set_aside_and_made_anew(uri, client, settings):
    local = client.create_experiment("named")

    chosen = choose(uri, local, settings)

    assert (chosen.name, chosen.location) == ("named", f"{LOCATION}/named")
    assert chosen.experiment_id != local
    assert client.get_experiment(local).name == f"named (local, {local})"
    assert f"named (local, {local})" in chosen.notice


@pytest.mark.parametrize("deleted", [False, True])
def test_an_experiment_elsewhere_with_runs_stops_with_the_command_that_mends_it(
    uri, client, settings, deleted
):
    local = client.create_experiment("named")
    run = client.create_run(local)
    if deleted:
        client.delete_run(run.info.run_id)

    with pytest.raises(TrackingError) as caught:
        choose(uri, local, settings)

    assert f"mlflow experiments create -n 'named-gce' -l {LOCATION}/named-gce" in str(caught.value)
    assert "No instance was created" in str(caught.value)
    assert client.get_experiment(local).name == "named"


def test_a_deleted_namesake_is_named(uri, client, settings):
    client.delete_experiment(client.create_experiment("a project"))

    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        choose(uri, "0", settings)


@pytest.fixture
def created(uri, settings):
    tracking = Tracking(uri)
    experiment = choose(uri, "0", settings)
    entry = EntryPoint(
        "main", "python x.py", {"lr": "1e-3", "epochs": "05", "text": "it's", "a@b": "1"}, ()
    )
    source = Source(Path("/p"), "https://example.com/p.git", commit="abc", dirty=True)
    run_id = tracking.create_run(
        experiment,
        source,
        entry,
        settings=settings,
        backend_parameters={"machine": "l4", "gce.max_hours": "2"},
        run_name="a name",
    )
    return tracking, experiment, run_id


def test_parameters_are_stored_canonical_and_unquoted(created, client):
    run = client.get_run(created[2])

    assert run.data.params == {
        "machine": "l4",
        "gce.max_hours": "2",
        "lr": "0.001",
        "epochs": "5",
        "text": "it's",
    }
    assert '"a@b": "1"' in run.data.tags["gce.parameters"]


def test_a_trainer_that_logs_the_same_value_itself_does_not_fail(created, client):
    client.log_param(created[2], "text", "it's")
    client.log_param(created[2], "lr", float("1e-3"))


def test_a_run_waits_as_scheduled_with_its_name_and_tags_from_the_start(created, client):
    run = client.get_run(created[2])

    assert (run.info.status, run.info.run_name) == ("SCHEDULED", "a name")
    assert run.data.tags["mlflow.project.backend"] == "gce"
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert run.data.tags["gce.git.dirty"] == "true"
    assert run.data.tags["gce.machine_type"] == "g2-standard-4"


def test_the_active_run_becomes_the_parent(uri, settings):
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(experiment_id="0") as parent:
        tracking = Tracking(uri)
        run_id = tracking.create_run(
            choose(uri, "0", settings),
            Source(Path("/p"), "p"),
            EntryPoint("main", "x", {}, ()),
            settings=settings,
            backend_parameters={},
            run_name=None,
        )

    assert MlflowClient(uri).get_run(run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_the_spec_shows_run_and_experiment_as_the_rest_api_does(created):
    tracking, experiment, run_id = created

    spec = tracking.spec(experiment, run_id)

    assert spec["experiment"]["artifact_location"] == experiment.location
    assert spec["run"]["info"]["artifact_uri"] == f"{experiment.location}/{run_id}/artifacts"
    assert {"key": "lr", "value": "0.001"} in spec["run"]["data"]["params"]


def test_the_end_is_written_with_its_reason_and_time(created, client):
    tracking, _, run_id = created

    tracking.terminate(run_id, EndReason.DEADLINE, at=1_700_000_000.5)

    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("KILLED", 1_700_000_000_500)
    assert run.data.tags["gce.end_reason"] == "deadline"


def test_a_submission_is_found_again_by_its_runs_tags(created, uri):
    tracking, _, run_id = created
    paths = RunPaths("folder/x", run_id)
    submission = Submission(
        run_id, "p", "z-1-a", f"mlflow-{run_id}-1", "b", paths, uri, 2e9, 1e9, 0.1045
    )

    tracking.set_tags(run_id, submission.tags())

    assert Submission.from_run(tracking.find_run(run_id[:6]), uri) == submission


def test_a_run_of_another_backend_is_told_so(created, uri):
    tracking, _, run_id = created

    with pytest.raises(TrackingError, match="not started with --backend gce"):
        Submission.from_run(tracking.find_run(run_id), uri)


def test_a_run_that_is_not_there_is_told_so(created):
    with pytest.raises(TrackingError, match="no run of this backend has the id or name 'fff'"):
        created[0].find_run("fff")
