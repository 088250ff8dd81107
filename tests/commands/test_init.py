"""A project made ready: files that are not there yet, and calls that are shown before made."""

from gce_backend.config import load_settings
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


def test_the_bucket_is_made_through_the_api(cloud):
    words = project(cloud)

    done = cloud.run("init", "--yes", *words, PATH="/nowhere")

    assert "gs://made-by-init --location=europe-west1" in done.stdout
    assert done.stdout.count("done") == 1
    cloud.put("it/exists", b"x", bucket="made-by-init")
    for call in cloud_calls("emulator-project", "made-by-init", "europe-west1"):
        assert str(call) in done.stdout
    assert "service_account: mlflow-gce@emulator-project.iam.gserviceaccount.com" in done.stdout


def test_a_folder_without_an_mlproject_is_refused(cloud):
    done = cloud.run("init", "--no-cloud", "--project", "p", "--bucket", "b")

    assert done.returncode == 1 and "no MLproject file" in done.stderr
    assert not (cloud.directory / "conf").exists()
