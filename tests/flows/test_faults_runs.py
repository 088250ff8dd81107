"""Runs that are taken back, never come up, are given up, or never began: each says how it ended."""

import os
import signal
import time

import pytest
from conftest import environment, wait_until
from stage import MOMENTS, Stage

from gce_backend.emulator import Fault
from gce_backend.history import History
from gce_backend.lifecycle import Phase
from gce_backend.storage import Storage

pytestmark = pytest.mark.rotating(one_in=2)


def history_of(cloud, run):
    with environment(cloud.environ):
        from gce_backend.submission import Submission

        paths = Submission.from_run(run, cloud.tracking_uri).paths
        return History(Storage(cloud.bucket, project="p"), paths).read()


def losses(cloud, run):
    return [m.step for m in cloud.client.get_metric_history(run.info.run_id, "loss")]


def test_a_preempted_run_without_a_client_waits_and_attach_takes_it_to_its_end(cloud):
    stage = Stage(cloud)
    with stage.stopped_at("epoch 2"):
        stage.client.send(signal.SIGKILL)
        stage.client.end()
        first_zone = cloud.only_run().data.tags["gce.zone"]
        cloud.emulator.preempt(stage.instance)
    wait_until(lambda: stage.names == [], what="the end of the instance")

    code, output = stage.mlflow_gce("sync", stage.run_id)

    assert code == 0, output
    waiting = cloud.only_run()
    assert waiting.data.tags["gce.state"] == "preempted, waiting"
    assert waiting.info.status in ("RUNNING", "SCHEDULED")
    assert waiting.data.tags["gce.preemptions"] == "1"
    code, output = stage.mlflow_gce("attach", stage.run_id)
    assert code == 0, output
    run = cloud.only_run()
    tags = run.data.tags
    assert (run.info.status, tags["gce.end_reason"]) == ("FINISHED", "succeeded")
    assert losses(cloud, run) == [1, 2], "one history"
    assert tags["gce.attempt"] == "2"
    assert tags["gce.zone"] != first_zone
    assert tags["gce.zones_used"] == first_zone
    assert "gce.state" not in tags
    events = history_of(cloud, run)
    assert [e.attempt for e in events if e.phase is Phase.CREATING] == [1, 2]
    assert events[-1].phase is Phase.DELETED


def test_attempts_are_counted(cloud):
    stage = Stage(cloud)
    with stage.stopped_at("epoch 1", "-Pgce.max_attempts=1"):
        cloud.emulator.preempt(stage.instance)

    assert stage.client.end() == 1, stage.client.text
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("FAILED", "preempted")
    assert len(cloud.inserted()) == 1


def test_without_room_for_the_next_attempt_the_run_waits_and_says_how_to_go_on(cloud):
    stage = Stage(cloud)
    with stage.stopped_at("epoch 1"):
        cloud.emulator.inject(Fault("no_capacity", times=None))
        cloud.emulator.preempt(stage.instance)

    assert stage.client.end() == 1, stage.client.text
    assert f"mlflow-gce attach {stage.run_id}" in stage.client.text
    assert cloud.only_run().data.tags["gce.state"] == "preempted, waiting"
    cloud.emulator.clear_faults()
    code, output = stage.mlflow_gce("attach", stage.run_id)
    assert code == 0, output
    assert cloud.only_run().info.status == "FINISHED"


def test_two_clients_that_both_go_on_share_one_instance_and_tell_the_same_end(cloud):
    stage = Stage(cloud)
    with stage.stopped_at("epoch 1", "-Pgce.ssh.via=none"):
        attached = cloud.start("mlflow-gce", "attach", stage.run_id)
        attached.wait_for("running")
        cloud.emulator.preempt(stage.instance)

    codes = stage.client.end(), attached.end()

    told = f"{stage.client.text}\n---\n{attached.text}"
    assert codes == (0, 0), told
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.attempt"]) == ("FINISHED", "2")
    assert losses(cloud, run) == [1, 2]
    assert cloud.inserted() == [f"mlflow-{stage.run_id}-{number}" for number in (1, 2)], told
    assert "no instance of it bills" not in told


@pytest.mark.parametrize("words", [["stop"], ["stop", "--now"]], ids=" ".join)
def test_a_stop_while_another_client_asks_for_the_next_attempt_is_heard(cloud, words):
    stage = Stage(cloud)
    with stage.stopped_at("epoch 1", "-Pgce.ssh.via=none"):
        held = stage.held("instances.insert")
        cloud.emulator.preempt(stage.instance)
        wait_until(held, what="the second insert")
        stopping = cloud.start("mlflow-gce", *words, stage.run_id)
        wait_until(lambda: stage.exists("/cancel"), what="the cancel")
        stage.let_go()

    codes = stage.client.end(), stopping.end()

    told = f"{stage.client.text}\n---\n{stopping.text}"
    assert codes == (130, 0), told
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("KILLED", "cancelled"), told
    assert cloud.emulator.instances() == []


def test_coming_to_a_run_whose_client_walks_from_zone_to_zone_disturbs_nothing(cloud):
    cloud.emulator.inject(Fault("no_capacity"))
    stage = Stage(cloud)
    held = stage.held("instances.delete")
    stage.submit("-Pgce.ssh.via=none")
    wait_until(held, what="the deletion after the first zone's refusal")
    attached = cloud.start("mlflow-gce", "attach", stage.run_id)

    def has_looked():
        listed = [call for call in cloud.emulator.calls if call.name == "zoneOperations.list"]
        return any(stage.run_id in str(call.query) for call in listed)

    wait_until(has_looked, what="a look at the refused insert")
    stage.let_go()

    codes = stage.client.end(), attached.end()

    told = f"{stage.client.text}\n---\n{attached.text}"
    assert codes == (0, 0), told
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.zone"]) == ("FINISHED", "europe-west4-a"), told


def test_an_instance_that_gives_no_sign_of_life_is_deleted(cloud):
    cloud.emulator.inject(Fault("no_startup_script"))
    stage = Stage(cloud)

    code = stage.submit("-Pgce.boot_minutes=0.05").end()

    assert code == 1, stage.client.text
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("FAILED", "boot_timeout")
    assert cloud.emulator.instances() == []
    phases = [event.phase for event in history_of(cloud, run)]
    assert phases == [Phase.CREATING, Phase.DELETING, Phase.DELETED], "it never ran"


def test_time_is_up_and_what_there_is_is_saved(cloud):
    stage = Stage(cloud)
    words = ["-Phold=epoch2", "-Pgce.max_hours=0.004", "-Pgce.grace_seconds=1"]

    code = stage.submit(*words).end()

    assert code != 0, stage.client.text
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("KILLED", "deadline")
    folder = run.info.artifact_uri.split("/", 3)[3]
    assert cloud.read(f"{folder}/checkpoints/epoch") == b"1"
    assert cloud.emulator.instances() == []


@pytest.mark.matrix(cells=2)
@pytest.mark.parametrize("moment", MOMENTS[:6])
def test_ctrl_c_at_any_time_ends_in_nothing_left_and_killed(cloud, moment):
    stage = Stage(cloud)
    with stage.stopped_at(moment):
        stage.client.send(signal.SIGINT)

    assert stage.client.end() == 130, stage.client.text
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("KILLED", "cancelled")
    assert cloud.emulator.instances() == []
    assert "Traceback" not in stage.client.text


def test_a_wedged_agent_is_given_up_after_a_limit_and_what_is_lost_is_said(cloud):
    from gce_backend.config import read_endpoints
    from gce_backend.console import Console
    from gce_backend.interrupts import Interrupts
    from gce_backend.runner import Limits, Runner
    from gce_backend.submission import Submission

    stage = Stage(cloud)
    with stage.stopped_at("epoch 2"):
        stage.client.send(signal.SIGKILL)
        stage.client.end()
        wait_until(lambda: stage.exists("/journal/"), what="the journal's first piece")
        for pid in stage.pids("agent.pyz"):
            os.kill(pid, signal.SIGSTOP)
        with environment(cloud.environ):
            runner = Runner(
                Submission.from_run(cloud.only_run(), cloud.tracking_uri),
                endpoints=read_endpoints(),
                console=Console(quiet=True),
                limits=Limits(cancel_seconds=2.0),
            )

            result = runner.cancel(Interrupts(active=False))

    assert "last sign of life" in result.message
    assert "the rest is lost" in result.message
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("KILLED", "cancelled")
    assert losses(cloud, run)[:1] == [1], "what it had uploaded is there"
    assert cloud.emulator.instances() == []


@pytest.mark.matrix(cells=1)
@pytest.mark.parametrize("command", [["attach"], ["stop"], ["stop", "--now"]])
def test_a_run_that_never_got_an_instance_keeps_its_end_and_gets_no_wishes(cloud, command):
    cloud.emulator.inject(Fault("no_capacity", times=None))
    stage = Stage(cloud)
    assert stage.submit().end() == 1, stage.client.text
    before = cloud.only_run()
    assert before.data.tags["gce.end_reason"] == "no_capacity"

    stage.mlflow_gce(*command, stage.run_id)

    after = cloud.only_run()
    assert after.data.tags["gce.end_reason"] == "no_capacity"
    assert (after.info.status, after.info.end_time) == ("FAILED", before.info.end_time)
    assert not stage.exists("/cancel")


def test_the_status_of_a_run_whose_instance_vanished_is_terminal(cloud):
    from gce_backend.backend import GceSubmittedRun
    from gce_backend.config import read_endpoints
    from gce_backend.submission import Submission

    stage = Stage(cloud)
    with stage.stopped_at("epoch 2", "-Pgce.max_attempts=1"):
        stage.client.send(signal.SIGKILL)
        stage.client.end()
        cloud.emulator.erase(stage.instance)

    with environment(cloud.environ):
        submission = Submission.from_run(cloud.only_run(), cloud.tracking_uri)
        status = GceSubmittedRun(submission, read_endpoints()).get_status()

    assert str(status) in ("FAILED", "4"), status
    assert cloud.only_run().data.tags["gce.end_reason"] == "instance_lost"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ten_minutes_without_the_bucket_cost_time_and_nothing_else(cloud):
    stage = Stage(cloud)
    refusal = Fault("unavailable", "storage.*", f"{cloud.bucket}*", times=None)
    with stage.stopped_at("epoch 1"):
        cloud.emulator.inject(refusal)
    time.sleep(600)
    assert stage.names == [f"mlflow-{stage.run_id}-1"], "it keeps what it could not bring"
    assert stage.client.is_alive, stage.client.text
    cloud.emulator.clear_faults()

    assert stage.client.end(180) == 0, stage.client.text
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("FINISHED", "succeeded")
    assert losses(cloud, run) == [1, 2]
    assert len(cloud.inserted()) == 1
    assert "the bucket answers again" in stage.client.text


@pytest.mark.long
def test_a_bucket_that_stays_away_before_the_insert_ends_the_run_and_nothing_bills(cloud):
    stage = Stage(cloud)
    with stage.stopped_at("before insert"):
        refusal = Fault("unavailable", "storage.*", f"{cloud.bucket}*", times=None)
        cloud.emulator.inject(refusal)

    assert stage.client.end(200) == 1, stage.client.text
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("FAILED", "submit_failed")
    assert cloud.inserts() == []
