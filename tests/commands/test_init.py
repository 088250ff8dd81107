"""A project made ready: files that are not there yet, and calls that are shown before made."""

import os

import pytest

from gce_backend.config import load_settings
from gce_backend.emulator import Fault
from gce_backend.preparation import cloud_calls


def project(cloud):
    (cloud.directory / "MLproject").write_text("name: p\n")
    return ["--project", "emulator-project", "--bucket", "made-by-init"]


def test_the_files_compose_and_are_written_once(cloud):
    words = project(cloud)

    first = cloud.run("init", "--no-cloud", *words)
    settings = load_settings(cloud.directory, environ={})
    second = cloud.run("init", "--no-cloud", *words)

    assert first.stdout.count("written: ") == 2
    assert (settings.project, settings.bucket) == ("emulator-project", "made-by-init")
    assert settings.machine.name == "n1-standard-2"
    assert "left as it is" in second.stdout


def test_every_call_is_shown_and_none_is_made_without_a_yes(cloud):
    words = project(cloud)
    before = len(cloud.emulator.calls)

    done = cloud.run("init", *words)

    assert done.returncode in (0, 1)  # the answers ran out: nothing was typed
    assert "gcloud services enable compute.googleapis.com" in done.stdout
    assert "make this call?" in done.stdout
    assert len(cloud.emulator.calls) == before


def test_the_bucket_is_made_through_the_api_and_the_rest_is_told_of_as_not_made(cloud):
    words = project(cloud)

    done = cloud.run("init", "--yes", *words, PATH="/nowhere")

    assert done.returncode == 1
    assert "gs://made-by-init --location=europe-west1" in done.stdout
    assert done.stdout.count("done") == 1
    cloud.put("it/exists", b"x", bucket="made-by-init")
    calls = cloud_calls("emulator-project", "made-by-init", "europe-west1")
    assert all(str(call) in done.stdout for call in calls)
    assert "6 of these calls could not be made" in done.stderr
    assert all(str(call) in done.stderr for call in calls if call.make is None)
    assert "service_account:" not in done.stdout, "it does not exist"


@pytest.fixture
def gcloud(cloud):
    """A gcloud that says on its error output what the file beside it holds; the environment."""
    program = cloud.directory / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$*" >> "$0.calls"\ncat "$0.says" >&2 && exit 1\n')
    program.chmod(0o755)
    return program, {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def test_a_second_time_everything_is_there(cloud, gcloud):
    program, environ = gcloud
    program.with_name("gcloud.says").touch()
    program.write_text(program.read_text().replace(" && exit 1", ""))
    words = project(cloud)
    first = cloud.run("init", "--yes", *words, **environ)
    program.write_text(program.read_text().rstrip() + " && exit 1\n")
    program.with_name("gcloud.says").write_text("ERROR: it already exists within project p.\n")

    second = cloud.run("init", "--yes", *words, **environ)

    for done in (first, second):
        assert done.returncode == 0, done.stderr
        assert "service_account: mlflow-gce@emulator-project.iam.gserviceacc" in done.stdout
    assert "it exists already, and you can use it" in second.stdout
    assert second.stdout.count("it exists already, and was left as it is") == 6
    calls = program.with_name("gcloud.calls").read_text()
    assert "services enable compute.googleapis.com --project=emulator-project" in calls


def test_a_call_that_fails_fails_the_command_after_the_others(cloud, gcloud):
    program, environ = gcloud
    program.with_name("gcloud.says").write_text("ERROR: you may not\n")

    done = cloud.run("init", "--yes", *project(cloud), **environ)

    assert done.returncode == 1
    assert done.stderr.count("ERROR: you may not") == 6
    assert "service_account:" not in done.stdout and "next: mlflow-gce doctor" not in done.stdout


def test_a_bucket_of_somebody_elses_is_told_and_stops_no_other_call(cloud, gcloud):
    cloud.emulator.inject(Fault("forbidden", "storage.objects.*", f"{cloud.bucket}*", times=None))
    words = [*project(cloud)[:2], "--bucket", cloud.bucket]

    done = cloud.run("init", "--yes", *words, **gcloud[1])

    assert done.returncode == 1
    assert f"bucket '{cloud.bucket}' exists already, in your project or in" in done.stderr
    assert "access is refused" in done.stderr
    assert gcloud[0].with_name("gcloud.calls").exists()


def test_a_project_whose_conf_is_there_is_prepared_as_it_says(cloud):
    cloud.run("init", "--no-cloud", *project(cloud))
    del cloud.environ["MLFLOW_GCE_BUCKET"]

    again = cloud.run("init", "--no-cloud")
    other = cloud.run("init", "--no-cloud", "--bucket", "another")

    assert (again.returncode, again.stderr) == (0, "")
    assert "names the bucket made-by-init, and runs go there, not to another" in other.stderr


def test_what_cannot_be_written_or_cannot_be_a_project_is_named(cloud):
    words = project(cloud)
    (cloud.directory / "conf").touch()

    done = cloud.run("init", "--no-cloud", *words)
    wrong = cloud.run("init", "--no-cloud", "--project", "a: b", *words[2:])

    assert (
        done.returncode == 1 and "cannot write conf/config.yaml: File exists (conf)" in done.stderr
    )
    assert wrong.returncode == 1 and "no project can have this id" in wrong.stderr


@pytest.mark.parametrize(("given", "code"), [("gs://mine/", 0), ("gs://mine/a", 1), ("-a", 1)])
def test_a_buckets_name_is_set_right_or_refused(cloud, given, code):
    words = [*project(cloud)[:2], "--bucket", given]

    done = cloud.run("init", "--no-cloud", *words)

    assert done.returncode == code
    if code:
        assert "no bucket can have this name" in done.stderr
        assert not (cloud.directory / "conf").exists()
    else:
        assert load_settings(cloud.directory, environ={}).bucket == "mine"


def test_a_folder_without_an_mlproject_is_refused(cloud):
    done = cloud.run("init", "--no-cloud", "--project", "p", "--bucket", "b")

    assert done.returncode == 1 and "no MLproject file" in done.stderr
    assert not (cloud.directory / "conf").exists()
