"""The list of instances: what each is doing, what is wrong with it, and how fast."""

import pytest

from gce_backend.emulator import Fault


def test_each_instance_in_its_phase(cloud):
    booting = cloud.instance(name="booting-bee")
    training = cloud.instance(name="training-toad")
    cloud.beats(training)
    orphan = cloud.instance(hours=-1)
    kept = cloud.instance(owner="colleague")
    cloud.ends(kept, verified=False, missing=("model.pt: never arrived",))
    stopped = cloud.instance()
    cloud.emulator.power_off(f"mlflow-{stopped}-1")

    rows = {row["run_id"]: row for row in cloud.json("ps")}

    phases = {run_id: row["phase"] for run_id, row in rows.items()}
    assert phases == {
        booting: "booting",
        training: "running",
        orphan: "booting",
        kept: "ended",
        stopped: "stopped",
    }
    assert [run_id for run_id, row in rows.items() if row["orphan"]] == [orphan]
    assert "model.pt: never arrived" in rows[kept]["note"]
    assert rows[training]["name"] == "training-toad" and rows[training]["note"] == ""
    assert rows[training]["zone"] == "europe-west1-b"
    assert 0 < rows[training]["cost_usd"] < 0.01 < rows[training]["usd_per_hour"] < 0.2
    assert rows[stopped]["cost_usd"] is None
    assert {row["run_id"] for row in cloud.json("ps", "--mine")} == set(rows) - {kept}
    assert rows[kept]["command"] == f"mlflow-gce rescue {kept}"
    assert rows[orphan]["command"] == "mlflow-gce reap"


def test_no_instances_and_no_answer(cloud):
    assert (
        cloud.run("ps").stdout == "no instances of mlflow-gce exist in project emulator-project\n"
    )
    cloud.emulator.inject(Fault("forbidden", "instances.aggregatedList", times=None))

    done = cloud.run("ps")

    assert (done.returncode, done.stdout) == (1, "")
    assert "403" in done.stderr and "Traceback" not in done.stderr


def test_without_a_project_it_says_how_to_name_one(cloud):
    endpoints = ("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "STORAGE_EMULATOR_HOST")
    for name in (*endpoints, "GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"):
        cloud.environ.pop(name, None)
    environ = {"GOOGLE_APPLICATION_CREDENTIALS": "/no/such/file", "PATH": "/usr/bin"}

    done = cloud.run("ps", **environ)

    assert done.returncode == 1
    assert "GOOGLE_CLOUD_PROJECT" in done.stderr and "Traceback" not in done.stderr


def test_the_project_of_conf_is_used(cloud):
    folder = cloud.directory / "conf" / "gce"
    folder.mkdir(parents=True)
    (folder / "default.yaml").write_text("project: emulator-project\n")

    done = cloud.run("ps", GOOGLE_CLOUD_PROJECT="")

    assert done.stdout == "no instances of mlflow-gce exist in project emulator-project\n"


@pytest.mark.long
def test_two_hundred_instances_are_listed_whole(cloud):
    """How fast that is, `bench/startup.py` measures."""
    for _ in range(200):
        cloud.beats(cloud.instance())

    rows = cloud.json("ps")

    assert {row["run_id"] for row in rows} == set(cloud.runs)
    assert {row["phase"] for row in rows} == {"running"}
