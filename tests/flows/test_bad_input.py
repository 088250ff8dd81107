"""Bad input gets its error before anything costs money, and exit code 1."""

import pytest
from conftest import CHECKOUT, PROJECTS

from gce_backend.emulator import Fault

PLAIN = PROJECTS / "plain"

WRONG = {
    "a number that is none": (CHECKOUT, ["-P", "epochs=ten"], "'ten' is not a number"),
    "an unknown machine": (CHECKOUT, ["-P", "machine=l5"], "Did you mean 'l4'"),
    "an unknown key": (
        CHECKOUT,
        ["-P", "machine.spott=true"],
        "Did you mean 'machine.spot'",
    ),
    "an unknown training key": (
        CHECKOUT,
        ["-P", "overrides=optimizer.lrr=1"],
        "Did you mean 'optimizer.lr'",
    ),
    "a quotation that never ends": (
        CHECKOUT,
        ["-P", "overrides=data=digits 'note=a"],
        "No closing quotation",
    ),
    "a bucket that none can be": (PLAIN, ["-P", "gce.bucket=-a"], "no bucket can have this name"),
    "a zone that does not offer the machine": (
        CHECKOUT,
        ["-P", "machine=a100", "-P", "gce.zones=[europe-west1-b]"],
        "is not offered in europe-west1-b",
    ),
    "a missing entry point": (PLAIN, ["-e", "nope"], "Could not find nope among entry points"),
    "a bucket that does not exist": (PLAIN, ["-P", "gce.bucket=no-such-bucket"], "no-such-bucket"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_before_an_instance_exists(cloud, name):
    project, words, message = WRONG[name]

    code, output = cloud.mlflow_run(project, *words)

    assert code == 1, output
    assert message in output
    assert "Traceback" not in output
    assert cloud.inserts() == []


#: What `mlflow run` finds out by itself, without asking an API.
PLANNED = [name for name in WRONG if name != "a bucket that does not exist"]


@pytest.mark.parametrize("name", PLANNED)
def test_plan_and_doctor_refuse_it_in_the_same_words(cloud, name):
    project, words, _ = WRONG[name]
    _, output = cloud.mlflow_run(project, *words)

    for command in ("plan", "doctor"):
        code, said = cloud.mlflow_gce(command, str(project), *words)

        assert code == 1, said
        assert said.removeprefix("mlflow-gce: ").strip() in output, said


def test_a_bucket_that_refuses_is_named_with_the_role_that_is_missing(cloud):
    fault = Fault("forbidden", "storage.*", f"{cloud.bucket}*", times=None)
    cloud.emulator.inject(fault)

    code, output = cloud.mlflow_run(PLAIN)

    assert code == 1, output
    assert cloud.bucket in output
    assert "gcloud storage buckets add-iam-policy-binding" in output
    assert "Traceback" not in output
    assert cloud.inserts() == []


@pytest.mark.parametrize("variable", ["MLFLOW_GCE_BUCKET", "GOOGLE_CLOUD_PROJECT"])
def test_without_project_or_bucket_both_ways_out_are_named(cloud, variable):
    del cloud.environ[variable]

    code, output = cloud.mlflow_run(PLAIN)

    assert code == 1, output
    assert "gcloud auth application-default login" in output
    assert "mlflow-gce emulator exec" in output
    assert "Traceback" not in output


def test_an_http_endpoint_that_is_not_loopback_is_refused(cloud):
    code, output = cloud.mlflow_run(
        PLAIN, CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE="http://10.1.2.3:80/compute/v1/"
    )

    assert code == 1, output
    assert "in the clear" in output


def test_a_named_experiment_with_runs_elsewhere_is_refused_with_the_command_that_mends_it(cloud):
    local = cloud.client.create_experiment("named")
    cloud.client.create_run(local)

    code, output = cloud.mlflow_run(PLAIN, "--experiment-name", "named")

    assert code == 1, output
    assert "mlflow experiments create -n 'named-gce' -l gs://" in output
    assert cloud.inserts() == []


def test_a_named_experiment_that_mlflow_just_made_is_set_right(cloud):
    code, output = cloud.mlflow_run(PLAIN, "--experiment-name", "brand new")

    assert code == 0, output
    experiment = cloud.client.get_experiment_by_name("brand new")
    assert experiment.artifact_location.startswith(f"gs://{cloud.bucket}/")
    assert "experiment 'brand new' created" in output
