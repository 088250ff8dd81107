"""With each single thing broken, that thing is named, and only that, with its command."""

import json

import pytest

from gce_backend.config import Machine
from gce_backend.credentials import explain
from gce_backend.emulator import Fault
from gce_backend.quota import needed_quota

SCOPES = "https://www.googleapis.com/auth/"
PERMISSIONS = "cloudresourcemanager.projects.testIamPermissions"
ACT_AS = "iam.serviceAccounts.testIamPermissions"


def examined(store, *words, **environ):
    found = store.json("doctor", *words, **environ)
    amiss = {each["name"]: each for each in found if each["state"] in ("FAILED", "warning")}
    return amiss, {each["name"]: each["state"] for each in found}


def test_all_is_well(store):
    amiss, states = examined(store)

    assert amiss == {}
    assert {name for name, state in states.items() if state != "ok"} == {
        "SSH",
        "instance: bucket",
        "instance: deletion",
        "instance: package index",
    }
    done = store.run("doctor")
    assert done.returncode == 0
    assert "inferred  instance: bucket: " in done.stdout


@pytest.mark.parametrize(
    ("name", "words", "fault", "remedy"),
    [
        (
            "permissions",
            [],
            Fault("forbidden", PERMISSIONS, "compute.instances.create", times=None),
            "gcloud projects add-iam-policy-binding emulator-project",
        ),
        (
            "service account",
            [],
            Fault("forbidden", ACT_AS, times=None),
            "--role=roles/iam.serviceAccountUser",
        ),
        (
            "service account",
            ["-P", "gce.service_account=trainer@p.iam.gserviceaccount.com"],
            None,
            "gcloud iam service-accounts create trainer",
        ),
        ("scopes", ["-P", f"gce.scopes=[{SCOPES}devstorage.read_only]"], None, "gce.scopes=["),
        ("bucket", ["-P", "gce.bucket=no-such-bucket-here"], None, "gcloud storage buckets create"),
        (
            "bucket",
            [],
            Fault("forbidden", "storage.objects.insert", times=None),
            "gcloud storage buckets add-iam-policy-binding",
        ),
        (
            "bucket's location",
            ["-P", "gce.zones=[us-central1-a]"],
            None,
            "--location=us-central1",
        ),
        (
            "image",
            ["-P", "machine.image=projects/ubuntu-os-cloud/global/images/family/ubuntu-1004"],
            None,
            "gcloud compute images list --project=ubuntu-os-cloud",
        ),
        ("machine", ["-P", "machine.machine_type=n9-standard-2"], None, "machine-types list"),
        ("machine", ["-P", "machine.zones=[europe-west1-b,europe-west1-z]"], None, "types list"),
        ("quota", ["-P", "machine.machine_type=n1-standard-96"], None, "regions describe europe"),
        ("network", ["-P", "gce.network=global/networks/none"], None, "gcloud compute networks"),
        (
            "project",
            [],
            Fault("forbidden", "projects.get", times=None),
            "--role=roles/compute.instanceAdmin.v1",
        ),
    ],
)
def test_one_thing_broken(store, name, words, fault, remedy):
    if fault is not None:
        store.emulator.inject(fault)

    amiss, _ = examined(store, *words)

    assert set(amiss) == {name}
    assert remedy in amiss[name]["remedy"]
    assert amiss[name]["detail"]


def test_a_project_that_does_not_exist(store):
    amiss, states = examined(store, GOOGLE_CLOUD_PROJECT="nobodys-project")

    assert set(amiss) == {"project"}
    assert states["permissions"] == states["quota"] == "skipped"
    assert states["bucket"] == "ok"


def test_a_store_that_is_not_there(store):
    done = store.run("doctor", MLFLOW_TRACKING_URI="http://user:secret@127.0.0.1:9")

    assert done.returncode == 1
    assert "FAILED    tracking store: the tracking store http://127.0.0.1:9" in done.stdout
    assert done.stdout.count("FAILED") == 1 and "secret" not in done.stdout


def test_an_emulator_that_has_stopped_is_named_with_the_command_that_starts_one(store):
    nowhere = "http://127.0.0.1:9"
    environ = {
        "STORAGE_EMULATOR_HOST": nowhere,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{nowhere}/compute/v1/",
    }

    done = store.run("doctor", **environ)
    amiss, _ = examined(store, **environ)

    assert set(amiss) == {"project", "bucket"}
    assert {each["remedy"] for each in amiss.values()} == {"mlflow-gce emulator start"}
    assert f"nothing listens at {nowhere} (connection refused)" in done.stdout


def test_no_credentials_come_before_everything_that_needs_them(store):
    for name in list(store.environ):
        if name.startswith("CLOUDSDK_API") or name == "STORAGE_EMULATOR_HOST":
            del store.environ[name]

    amiss, states = examined(store, GOOGLE_APPLICATION_CREDENTIALS="/no/such/key.json")

    assert set(amiss) == {"credentials"}
    assert "gcloud auth application-default login" in amiss["credentials"]["remedy"]
    assert states["bucket"] == states["project"] == states["image"] == "skipped"
    assert states["tracking store"] == "ok"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["there is no such file", "unset GOOGLE_APPLICATION_CREDENTIALS"]),
        ("not json", ["is no credentials file"]),
        (
            {"type": "service_account", "client_email": "robot@p.iam.gserviceaccount.com"},
            ["deleted or disabled", "keys create KEY.json --iam-account=robot@p"],
        ),
        (
            {
                "type": "impersonated_service_account",
                "service_account_impersonation_url": (
                    "https://iam/v1/projects/-/serviceAccounts/robot@p.com:generateAccessToken"
                ),
            },
            ["robot@p.com", "roles/iam.serviceAccountTokenCreator"],
        ),
        ({"type": "external_account"}, ["workload-identity-pools"]),
        ({"type": "authorized_user"}, ["expired or was revoked", "application-default login"]),
        ({"type": "new_kind"}, ["unknown type 'new_kind'"]),
    ],
)
def test_credentials_are_explained_with_the_command_to_run(tmp_path, content, words):
    file = tmp_path / "key.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))

    text = explain(
        Exception("invalid_grant: Bad Request"), {"GOOGLE_APPLICATION_CREDENTIALS": str(file)}
    )

    assert str(file) in text
    for word in words:
        assert word in text


def test_no_login_at_all_names_the_file_looked_for(tmp_path):
    text = explain(Exception("x"), {"CLOUDSDK_CONFIG": str(tmp_path)})

    assert f"{tmp_path}/application_default_credentials.json does not exist" in text
    assert text.endswith("gcloud auth application-default login")


def test_the_quotas_that_a_machine_takes():
    def machine(machine_type, **changes):
        return Machine(name="m", machine_type=machine_type, image="i", zones=["z-a"], **changes)

    assert needed_quota(machine("n1-standard-2"), 2)["CPUS"] == 2
    assert needed_quota(machine("c3-standard-4"), 4)["C3_CPUS"] == 4
    t4 = machine("n1-standard-4", gpus=1, accelerator_type="nvidia-tesla-t4", spot=True)
    assert needed_quota(t4, 4, known=["CPUS", "PREEMPTIBLE_NVIDIA_T4_GPUS"]) == {
        "INSTANCES": 1,
        "CPUS": 4,
        "SSD_TOTAL_GB": 50,
        "PREEMPTIBLE_NVIDIA_T4_GPUS": 1,
        "GPUS_ALL_REGIONS": 1,
    }
