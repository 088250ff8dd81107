"""The one instance that `doctor --probe` starts: always deleted, and what it finds out."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gce_backend import probe_script
from gce_backend.config import load_settings
from gce_backend.emulator import Fault
from gce_backend.probe_findings import matters
from gce_backend.storage import Storage

SCOPES = "https://www.googleapis.com/auth/"
GONE = "GET says 404"
WHERE = {"gce.project": "p", "gce.bucket": "b"}
INSIDE = ("instance: bucket", "instance: deletion", "instance: package index")


def probed(store, *words):
    found = store.json("doctor", "--probe", "--yes", *words)
    return {each["name"]: each for each in found}


def inserts(store, since=0):
    return [c for c in store.emulator.calls[since:] if c.name == "instances.insert"]


def test_whoever_creates_the_instance_deletes_it_and_says_so_after_the_404(store):
    before = len(store.emulator.calls)

    done = store.run("doctor", "--probe", "--yes")

    assert done.returncode == 0, done.stdout
    (insert,) = inserts(store, before)
    name = insert.body["name"]
    assert store.emulator.instances() == []
    calls = [c for c in store.emulator.calls[before:] if c.path.endswith(f"/instances/{name}")]
    assert ("DELETE", 200) in [(c.method, c.status) for c in calls]
    assert (calls[-1].method, calls[-1].status) == ("GET", 404)
    assert f"{name} deleted: {GONE}" in done.stderr
    scheduling = insert.body["scheduling"]
    assert scheduling["instanceTerminationAction"] == "DELETE"
    assert int(scheduling["maxRunDuration"]["seconds"]) <= 600
    assert int(insert.body["labels"]["mlflow-gce-deadline"]) < time.time() + 1800


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_deletes_it_as_well(store, number):
    store.emulator.inject(Fault("no_startup_script", times=None))

    def interrupt():
        eventually(store.emulator.instances, "the instance exists")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = store.run("doctor", "--probe", "--yes")
    thread.join()

    assert store.emulator.instances() == []
    assert done.returncode == 128 + number, done.stderr
    assert GONE in done.stderr


@pytest.mark.long
def test_a_signal_to_a_process_of_its_own(store):
    store.emulator.inject(Fault("no_startup_script", times=None))
    process = store.start("doctor", "--probe", "--yes", stderr=subprocess.PIPE, text=True)
    eventually(lambda: store.emulator.instances() or process.poll(), "the instance exists")

    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)

    assert store.emulator.instances() == []
    assert process.returncode == 128 + signal.SIGTERM, said
    assert GONE in said and "Traceback" not in said


def eventually(check, what):
    end = time.monotonic() + 60
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_what_it_finds_replaces_what_was_inferred(store, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.emulator.storage_url)
    usual = {each["name"]: each["state"] for each in store.json("doctor")}
    assert {name for name, state in usual.items() if state == "inferred"} == {"SSH", *INSIDE}

    found = probed(store)

    assert list(found) == list(usual)
    assert {each["state"] for each in found.values()} == {"ok"}
    assert store.bucket in found["instance: bucket"]["detail"]
    assert "uv" in found["instance: package index"]["detail"]
    assert list(Storage(store.bucket, project="p").list("mlflow-gce/probe-")) == []


def test_what_the_account_may_not_is_named_with_its_command(store):
    found = probed(store, "-P", f"gce.scopes=[{SCOPES}devstorage.read_only]")

    bucket, deletion = found["instance: bucket"], found["instance: deletion"]
    assert bucket["state"] == deletion["state"] == "FAILED"
    assert "writing gs://" in bucket["detail"] and "403" in bucket["detail"]
    assert f"add-iam-policy-binding gs://{store.bucket}" in bucket["remedy"]
    assert "403" in deletion["detail"] and "compute.instances.delete" in deletion["remedy"]
    assert store.emulator.instances() == []


def test_a_server_is_tried_from_there_unless_its_address_means_this_machine(store):
    settings = load_settings(Path(os.devnull), environ=store.environ, parameters=WHERE)

    def asked(uri):
        return [each.question for each in matters(settings, uri, lambda: "trainer@p")]

    assert asked("http://10.1.2.3:5000") == ["ssh", "bucket", "deletion", "index", "tracking"]
    for uri in ("http://127.0.0.1:5000", "sqlite:///mlflow.db", None):
        assert "tracking" not in asked(uri)


def test_any_answer_of_the_server_shows_the_way_and_none_shows_that_there_is_none(store):
    url = store.emulator.storage_url
    assert probe_script.tracking({"tracking": f"{url}/"}) == f"{url} answers from there (HTTP 501)"
    with pytest.raises(probe_script.Failed, match=r"http://127.0.0.1:9: no answer \("):
        probe_script.tracking({"tracking": "http://127.0.0.1:9"})


def test_it_asks_before_it_spends(store):
    before = len(store.emulator.calls)

    done = store.run("doctor", "--probe")  # nobody there to answer

    assert done.returncode == 1
    assert "e2-small" in done.stderr and "$" in done.stderr and "estimate" in done.stderr
    assert inserts(store, before) == []


def test_nothing_is_started_where_a_run_would_not_be(store):
    before = len(store.emulator.calls)

    found = probed(store, "-P", "gce.network=global/networks/none")

    assert inserts(store, before) == []
    assert {found[name]["state"] for name in INSIDE} == {"skipped"}
    assert "network comes first" in found["instance: bucket"]["detail"]


def test_an_instance_that_says_nothing_is_told_of_and_deleted(store, monkeypatch):
    monkeypatch.setattr("gce_backend.probe._ANSWER_SECONDS", 2.0)
    store.emulator.inject(Fault("no_startup_script", times=None))

    found = probed(store)

    assert {found[name]["state"] for name in INSIDE} == {"inferred"}
    assert "did not answer within" in found["instance: bucket"]["detail"]
    assert store.emulator.instances() == []


def test_a_full_zone_leads_to_the_next(store):
    store.emulator.inject(Fault("no_capacity", resource="europe-west1-b/*"))

    found = probed(store)

    assert found["instance: bucket"]["state"] == "ok"
    assert store.emulator.instances() == []


def test_one_that_cannot_be_deleted_is_told_of_with_the_command(store):
    store.emulator.inject(Fault("forbidden", "instances.delete", times=None))

    done = store.run("doctor", "--probe", "--yes")

    (left,) = store.emulator.instances()
    assert done.returncode == 1
    assert "may still be billing" in done.stderr and GONE not in done.stderr
    assert f"gcloud compute instances delete {left['name']} --zone" in done.stderr
    assert "instance: bucket" in done.stdout, "what was found is told all the same"
