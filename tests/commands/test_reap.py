"""What is deleted, and what never is: every instance here is judged by the real command."""

import getpass
import time
import types

import pytest

from gce_backend import reaper
from gce_backend.agent.paths import RunPaths
from gce_backend.emulator import Fault
from gce_backend.fleet import FoundInstance
from gce_backend.glance import glance
from gce_backend.reaper import Evidence, Fate, judge

NOW = 1_000_000.0
COLLECT = ["reap", "--collect"]
DONE = {"end_reason": "succeeded", "attempt": 1}


def instance(**changes):
    values = {
        "name": "mlflow-ab-1",
        "zone": "z",
        "project": "p",
        "status": "RUNNING",
        "run_id": "ab",
        "run_name": "bold-crab-1",
        "attempt": 1,
        "owner": "me",
        "deadline": NOW + 3600,
        "bucket": "b",
        "paths": RunPaths("mlflow-gce", "ab"),
        "machine_type": "n1-standard-2",
        "spot": False,
        "started_at": NOW - 1800,
        "usd_per_hour": 0.1,
    }
    return FoundInstance(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "evidence", "fate"),
    [
        ({}, Evidence(heartbeat_at=NOW - 5), Fate.WORKING),
        ({"started_at": NOW - 100}, Evidence(), Fate.WORKING),
        ({}, Evidence(), Fate.SILENT),
        ({}, Evidence(heartbeat_at=NOW - 600), Fate.SILENT),
        ({"started_at": NOW - 30}, Evidence(heartbeat_at=NOW - 600), Fate.WORKING),
        ({"status": "TERMINATED"}, Evidence(heartbeat_at=NOW - 600), Fate.STOPPED),
        ({"status": "TERMINATED"}, Evidence(status=DONE), Fate.PROVEN),
        ({}, Evidence(status=DONE), Fate.PROVEN),
        ({}, Evidence(status=DONE, missing=("x",)), Fate.KEPT),
        ({"attempt": 2}, Evidence(status=DONE), Fate.SILENT),
        ({"attempt": 1}, Evidence(status={**DONE, "attempt": 2}), Fate.PROVEN),
        ({}, Evidence(unreadable="403"), Fate.UNREADABLE),
        ({"deadline": None}, Evidence(unreadable="403"), Fate.UNREADABLE),
        ({"deadline": None}, Evidence(status=DONE), Fate.PROVEN),
        ({"deadline": NOW - 1}, Evidence(), Fate.OVERDUE),
        ({"deadline": NOW - 1}, Evidence(unreadable="403"), Fate.OVERDUE),
        ({"deadline": NOW - 1}, Evidence(status=DONE, missing=("x",)), Fate.OVERDUE),
    ],
)
def test_the_judgement(changes, evidence, fate):
    verdict = judge(instance(**changes), evidence, NOW)

    assert verdict.fate is fate
    assert verdict.deletes == (fate in (Fate.PROVEN, Fate.OVERDUE))
    assert verdict.why
    assert verdict.deletes or verdict.command or fate is Fate.WORKING


def test_every_kind_of_instance_at_once(cloud):
    proven = cloud.instance()
    cloud.ends(proven, files={"mlflow-gce/experiments/e/model.pt": b"m"})
    elsewhere = cloud.instance(owner="colleague", zone="us-central1-a")
    cloud.ends(elsewhere)
    overdue = cloud.instance(hours=-0.1)
    cloud.beats(overdue)
    unverified = cloud.instance()
    cloud.ends(unverified, verified=False, missing=("model.pt: never arrived",))
    damaged = cloud.instance()
    cloud.ends(damaged, files={f"mlflow-gce/{damaged}/model.pt": b"whole"})
    cloud.put(f"mlflow-gce/{damaged}/model.pt", b"other")
    working = cloud.instance()
    cloud.beats(working)
    silent = cloud.instance()
    cloud.beats(silent, ago=3600)
    booting = cloud.instance()
    lost = cloud.instance()
    cloud.emulator.power_off(f"mlflow-{lost}-1")

    rehearsal = cloud.run("reap", "--dry-run")

    assert rehearsal.returncode == 0, rehearsal.stderr
    assert cloud.left() == set(cloud.runs)
    assert rehearsal.stdout.count("would be deleted: ") == 3
    done = cloud.run("reap")
    assert done.returncode == 0, done.stderr + done.stdout
    assert cloud.left() == {unverified, damaged, working, silent, booting, lost}
    assert done.stdout.count("GET says 404") == 3
    assert f"kept: results unverified: gs://{cloud.bucket}/mlflow-gce/{damaged}" in done.stdout
    assert "model.pt: never arrived" in done.stdout
    assert f"mlflow-gce rescue {unverified}" in done.stdout
    assert f"gcloud compute instances start mlflow-{lost}-1 --zone" in done.stdout
    assert "9 instances, 3 deleted" in done.stdout
    for line in done.stdout.splitlines():
        assert line.startswith((time.strftime("20%y-"), "  "))


def test_a_kept_instance_survives_a_colleague_with_another_bucket_until_its_deadline(cloud):
    kept = cloud.instance()
    cloud.ends(kept, verified=False, missing=("model.pt: never arrived",))
    cloud.emulator.create_bucket("a-colleagues-bucket")
    theirs = {"MLFLOW_GCE_BUCKET": "a-colleagues-bucket", "LOGNAME": "colleague"}

    for words in (["ps"], ["reap"], ["reap", "--collect"]):
        assert cloud.run(*words, **theirs).returncode == 0
        assert cloud.run(*words).returncode == 0

    assert cloud.left() == {kept}


def test_a_bucket_that_cannot_be_read_saves_its_instance_and_is_an_error(cloud):
    run_id = cloud.instance()
    cloud.ends(run_id)
    garbled = cloud.instance()
    cloud.put(cloud.paths(garbled).status, b"{not json")
    nameless = cloud.instance(bucket="no-such-bucket-anywhere")
    cloud.emulator.inject(Fault("forbidden", "storage.objects.get", f"*{run_id}*", times=None))

    done = cloud.run("reap")

    assert done.returncode == 1
    assert {run_id, garbled} <= cloud.left()
    assert "unreadable: cannot read gs://" in done.stdout
    assert "is not JSON" in done.stdout
    assert nameless in cloud.left()  # no object there says that it has ended


def test_a_list_that_is_refused_is_an_error(cloud):
    cloud.instance()
    cloud.emulator.inject(Fault("forbidden", "instances.aggregatedList", times=None))

    done = cloud.run("reap")

    assert (done.returncode, done.stdout) == (1, "")
    assert "listing the instances of project 'emulator-project': 403" in done.stderr


def test_a_delete_that_fails_is_an_error_and_never_called_a_deletion(cloud):
    run_id = cloud.instance()
    cloud.ends(run_id)
    cloud.emulator.inject(Fault("forbidden", "instances.delete", times=None))

    done = cloud.run("reap")

    assert done.returncode == 1
    assert f"gcloud compute instances delete mlflow-{run_id}-1" in done.stdout
    assert "NOT deleted" in done.stdout and "GET says 404" not in done.stdout
    assert "0 deleted" in done.stdout


def test_only_mine_and_json(cloud):
    mine = cloud.instance()
    theirs = cloud.instance(owner="colleague")
    for run_id in (mine, theirs):
        cloud.ends(run_id)

    (outcome,) = cloud.json("reap", "--mine")

    assert (outcome["run_id"], outcome["deed"], outcome["verdict"]) == (mine, "deleted", "proven")
    assert cloud.left() == {theirs}


def test_a_stopped_instance_is_started_again_to_collect(cloud):
    lost = cloud.instance()
    cloud.emulator.power_off(f"mlflow-{lost}-1")

    done = cloud.run("reap", "--collect")

    assert "started again" in done.stdout, done.stdout + done.stderr
    end = time.monotonic() + 20
    while cloud.emulator.instances()[0]["status"] != "RUNNING":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_silent_instance_is_reset_once_and_only_when_asked(cloud, monkeypatch):
    silent, never, short, working = (cloud.instance() for _ in range(4))
    monkeypatch.setattr(reaper, "time", types.SimpleNamespace(time=lambda: time.time() + 1000))
    cloud.beats(silent)
    cloud.beats(short, ago=-300)
    cloud.beats(working, ago=-1000)
    before = len(cloud.emulator.calls)

    said = [cloud.run(*words).stdout for words in (["reap"], COLLECT, COLLECT)]

    resets = [c for c in cloud.emulator.calls[before:] if c.name == "instances.reset"]
    assert {c.path.split("/")[-2] for c in resets} == {f"mlflow-{silent}-1", f"mlflow-{never}-1"}
    assert len(resets) == 2, "the third reap leaves them alone"
    assert (
        f"mlflow-{silent}-1 (europe-west1-b, {getpass.getuser()})  reset, to collect its results"
        in said[1]
    )
    assert "reset" not in said[0] + said[2]
    assert said[2].count("get-serial-port-output") == 3
    assert cloud.left() == {silent, never, short, working}


def test_a_second_attempt_is_judged_by_its_own_heartbeat_and_not_by_the_first_ones_status(
    cloud, monkeypatch
):
    monkeypatch.setattr(reaper, "time", types.SimpleNamespace(time=lambda: time.time() + 1000))
    second = cloud.instance(labels={"mlflow-gce-attempt": "2"})
    cloud.ends(second, reason="preempted")
    cloud.beats(second, ago=-1000, attempt=2)
    before = len(cloud.emulator.calls)

    done = cloud.run(*COLLECT)

    assert done.returncode == 0, done.stderr
    assert [c for c in cloud.emulator.calls[before:] if c.name == "instances.reset"] == []
    (shown,) = cloud.json("ps")
    assert (shown["phase"], shown["verdict"], shown["note"]) == ("running", "working", "")


def test_the_quick_look_takes_the_callers_own_proven_ones_alone(cloud, monkeypatch):
    for name, value in {**cloud.environ, "MLFLOW_GCE_GLANCE": ""}.items():
        monkeypatch.setenv(name, value)
    proven, busy, theirs = cloud.instance(), cloud.instance(), cloud.instance(owner="colleague")
    overdue, unproven = cloud.instance(hours=-1), cloud.instance()
    for run_id in (proven, busy, theirs):
        cloud.ends(run_id)
    cloud.ends(unproven, verified=False)
    cloud.emulator.inject(Fault("slow", "instances.aggregatedList", seconds=2))
    said = []

    looking = glance(cloud.emulator.project, say=said.append, except_run=busy)
    assert looking.is_alive(), "nobody waited for the answer"
    looking.join(30)

    assert cloud.left() == {busy, theirs, overdue, unproven}
    assert len(said) == 1 and f"mlflow-{proven}-1" in said[0] and "404" in said[0]


def test_the_quick_look_is_silent_when_it_cannot_see(cloud, monkeypatch):
    for name, value in {**cloud.environ, "MLFLOW_GCE_GLANCE": ""}.items():
        monkeypatch.setenv(name, value)
    cloud.instance()
    cloud.emulator.inject(Fault("forbidden", "instances.aggregatedList", times=None))
    said = []

    glance(cloud.emulator.project, say=said.append).join(30)

    assert said == []


def test_the_quick_look_can_be_switched_off(cloud, monkeypatch):
    for name, value in {**cloud.environ, "MLFLOW_GCE_GLANCE": "false"}.items():
        monkeypatch.setenv(name, value)
    cloud.ends(cloud.instance())

    glance(cloud.emulator.project, say=print).join(30)

    assert cloud.left() == set(cloud.runs)
