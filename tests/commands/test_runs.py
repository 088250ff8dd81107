"""What commands say of one run, of its costs, and of a run that is only planned."""

import json
import time

import pytest
import requests

from gce_backend.emulator import Fault
from gce_backend.history import Event, History
from gce_backend.lifecycle import Phase
from gce_backend.prices import PRICE_DATE
from gce_backend.storage import Storage

PROJECT = """
entry_points:
  main:
    parameters:
      epochs: {type: float, default: 5}
      overrides: {type: string, default: ""}
    command: python train.py --overrides {overrides}
"""
JOURNAL = {
    "seq": 1,
    "at": 1,
    "path": "runs/log-metric",
    "method": "POST",
}


def test_show_a_run_that_trains_and_one_that_has_ended(store, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.emulator.storage_url)
    run_id = store.store_run(**{"gce.state": "preempted, waiting"})
    store.instance(run_id)
    store.beats(run_id)
    history = History(Storage(store.bucket, project="p"), store.paths(run_id))
    history.record(Event(1, Phase.CREATING, time.time() - 60, zone="europe-west1-b"))
    history.record(Event(1, Phase.RUNNING, time.time() - 50, "the agent says so"))

    shown = store.json("show", run_id[:6])
    text = store.run("show", "bold-crab-1").stdout

    assert (shown["status"], shown["phase"], shown["instance_exists"]) == (
        "RUNNING",
        "running",
        True,
    )
    assert [event["phase"] for event in shown["history"]] == ["creating", "running"]
    assert shown["cost_usd"] > 0 and shown["tags"]["gce.state"] == "preempted, waiting"
    assert "the agent says so" in text and "preempted, waiting" in text
    for command in ("attach", "stop", "logs", "pull"):
        assert f"mlflow-gce {command} {run_id}" in text

    store.emulator.erase(f"mlflow-{run_id}-1")
    store.ends(run_id)
    store.client.set_terminated(run_id, "FINISHED")
    store.client.set_tag(run_id, "gce.end_reason", "succeeded")
    text = store.run("show", run_id).stdout
    assert "FINISHED (succeeded)" in text and "gone: nothing bills" in text
    assert "mlflow-gce stop" not in text and f"mlflow-gce pull {run_id}" in text


def test_show_says_what_it_could_not_read(store):
    run_id = store.store_run()
    store.emulator.inject(Fault("forbidden", "instances.aggregatedList", times=None))
    store.emulator.inject(Fault("forbidden", "storage.objects.get", times=None))

    done = store.run("show", run_id)

    assert done.returncode == 0
    assert "not known" in done.stdout and "nothing bills" not in done.stdout
    assert done.stderr.count("mlflow-gce: ") == 2


def test_sync_several_and_all(store):
    runs = [store.store_run(f"run-{number}") for number in range(3)]
    for run_id in runs:
        body = {"run_id": run_id, "key": "loss", "value": 0.5, "timestamp": 1, "step": 1}
        record = json.dumps({**JOURNAL, "body": body}).encode()
        store.put(store.paths(run_id).journal(1), record + b"\n")

    named = store.run("sync", runs[0][:8], "run-1")
    everything = store.json("sync", "--all")
    nothing = store.run("sync", "-a")

    assert named.returncode == 0, named.stderr
    assert named.stdout.count("the store has all that is in the bucket (1 new records)") == 2
    assert [(each["run_id"], each["records"]) for each in everything] == [(runs[2], 1)]
    assert nothing.stdout == "the store has all that is in the buckets\n"
    for run_id in runs:
        assert store.client.get_run(run_id).data.metrics["loss"] == 0.5
    assert store.run("sync").returncode == 2
    unknown = store.run("sync", "nobody")
    assert unknown.returncode == 1 and "'nobody'" in unknown.stderr


def test_sync_all_takes_what_has_just_come_and_says_what_it_cannot_reach(store):
    run_id, lost = store.store_run(), store.store_run()
    store.client.set_tag(lost, "gce.run", f"gs://no-such-bucket-here/mlflow-gce/runs/{lost}")
    body = {"run_id": run_id, "key": "loss", "value": 0.5, "timestamp": 1, "step": 1}
    record = {**JOURNAL, "at": round(time.time() * 1000), "body": body}
    store.put(store.paths(run_id).journal(1), json.dumps(record).encode() + b"\n")
    store.emulator.inject(Fault("forbidden", "storage.objects.get", "no-such-bucket*", times=None))

    done = store.run("sync", "--all")

    assert done.returncode == 1 and f"run {lost}: " in done.stderr
    assert f"run {run_id}: the store has all that is in the bucket (1 new records)" in done.stdout


def test_cost_sums_up_ended_and_running(store):
    ended = store.store_run("ended")
    store.client.log_metric(ended, "gce/cost_usd", 1.25)
    store.client.set_terminated(ended, "FINISHED")
    store.store_run("running", **{"gce.created_at": str(time.time() - 3600)})
    nobody_knows = store.store_run("new-machine")
    store.client.delete_tag(nobody_knows, "gce.usd_per_hour")

    found = store.json("cost")
    text = store.run("cost", "--since", "2w").stdout

    assert found["estimated_usd"] == pytest.approx(1.25 + 0.1163, abs=0.01)
    assert found["runs_without_a_price"] == 1 and len(found["runs"]) == 3
    assert "about $1.37 (estimate by list prices of " in text
    assert "1 runs of unknown price not counted" in text
    tomorrow = time.strftime("%Y-%m-%d", time.localtime(time.time() + 86400))
    assert store.json("cost", "--since", tomorrow)["runs"] == []
    assert store.run("cost", "--since", "yesterday").returncode == 2


@pytest.mark.parametrize("reason", ["no_capacity", "quota_exceeded", "refused", "submit_failed"])
def test_a_run_that_never_had_an_instance_cost_nothing(store, reason):
    ago = {"gce.created_at": str(time.time() - 3600), "gce.end_reason": reason}
    store.client.set_terminated(store.store_run("never-made", **ago), "FAILED")
    uncertain = store.store_run("perhaps-made", **ago, **{"gce.may_bill": "mlflow-x-1"})
    store.client.set_terminated(uncertain, "FAILED")
    later = store.store_run("made-before", **ago, **{"gce.attempt": "2"})
    store.client.set_terminated(later, "FAILED")

    for found in (store.json("cost")["runs"], store.json("ps", "--all")):
        costs = {row["name"]: row["cost_usd"] for row in found}
        assert costs["never-made"] == 0
        assert costs["perhaps-made"] > 0 and costs["made-before"] > 0


@pytest.fixture
def project(cloud):
    """A project in the cloud's directory that composes its configuration by Hydra."""
    (cloud.directory / "MLproject").write_text(PROJECT)
    return cloud


def test_plan_says_prices_deadline_and_the_worst_case(project):
    cloud = project
    planned = cloud.json("plan", "-P", "machine=t4", "-P", "gce.max_hours=2", "-P", "epochs=3")
    text = cloud.run(
        "plan", "-P", "machine.spot=true", "--backend-config", '{"machine": "l4"}'
    ).stdout

    first = planned["estimates"][0]
    assert (first["zone"], first["machine_type"]) == ("europe-west1-b", "n1-standard-4")
    assert first["on_demand_usd_per_hour"] > first["spot_usd_per_hour"] > 0.2
    assert first["at_most_usd"] == pytest.approx(first["on_demand_usd_per_hour"] * 2.5)
    assert "l4 (g2-standard-4, 1 GPU), spot" in text
    assert "an estimate: list prices of " in text
    assert [c for c in cloud.emulator.calls if cloud.bucket in c.path] == []
    wrong = cloud.run("plan", "-P", "machine=l5")
    assert wrong.returncode == 1 and "l4" in wrong.stderr
    assert cloud.run("plan", "--backend-config", "[1]").returncode == 2
    for words in (["-P", "epochs"], ["-P", "epochs=1", "-P", "epochs=2"]):
        assert cloud.run("plan", *words).returncode == 2


def test_plan_is_of_the_run_that_the_same_words_would_start(project):
    """The machine may stand in the entry point's own words as well."""
    planned = project.json("plan", "-P", "overrides=machine=l4 machine.spot=true")
    doctor = project.run("doctor", "-P", "overrides=machine=nonsense")

    assert (planned["machine"], planned["spot"]) == ("l4", True)
    assert doctor.returncode == 1 and "no such machine" in doctor.stderr


def test_an_entry_point_other_than_main_is_planned(project):
    text = PROJECT.replace("--overrides", "machine=t4 --overrides").replace("main:", "other:")
    (project.directory / "MLproject").write_text(text)

    assert project.json("plan", "-e", "other")["machine"] == "t4"


def test_plan_refuses_a_folder_without_a_project(cloud):
    done = cloud.run("plan")

    assert done.returncode == 1 and "has no MLproject file" in done.stderr


def test_plan_refreshes_prices_from_the_catalog_and_keeps_them(project, monkeypatch):
    cloud = project
    monkeypatch.setattr("gce_backend.price_catalog._PAGE_SIZE", 7)
    environ = {"XDG_CACHE_HOME": str(cloud.directory / "cache")}
    first = cloud.json("plan", "--refresh", "-P", "machine=e2-standard-4", **environ)
    today = time.strftime("%Y-%m-%d")
    away = {"CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDBILLING": "http://127.0.0.1:9/"}
    later = cloud.run("plan", "-P", "machine=e2-standard-4", **environ, **away)

    real = cloud.run("plan", CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDBILLING="", **environ)

    assert first["price_date"].startswith(today)
    assert f"list prices of {PRICE_DATE}," in real.stdout, "invented prices outside the emulator"
    assert f"list prices of {today}" in later.stdout and later.stderr == ""
    unknown = f"{cloud.emulator.compute_url.removesuffix('compute/v1/')}v1/services"
    assert requests.get(unknown, timeout=10).status_code == 501


def test_without_the_catalog_plan_says_of_when_its_prices_are(project, monkeypatch):
    cloud = project
    monkeypatch.setattr("gce_backend.rest.retry", lambda call, **_: call())
    away = {"CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDBILLING": "http://127.0.0.1:9/"}
    done = cloud.run("plan", "--refresh", XDG_CACHE_HOME=str(cloud.directory), **away)

    assert done.returncode == 0 and "list prices of 20" in done.stdout
    assert "prices are still those of" in done.stderr
    assert "gcloud services enable cloudbilling" in done.stderr
