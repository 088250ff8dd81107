"""Who deletes the instance: each of the four layers does it with all others switched off."""

import signal

import pytest
from conftest import wait_until
from stage import Stage

from gce_backend.emulator import Fault

pytestmark = pytest.mark.rotating(one_in=3)

STORAGE_ONLY = "-Pgce.scopes=[https://www.googleapis.com/auth/devstorage.read_write]"


def killed(stage):
    stage.client.send(signal.SIGKILL)
    stage.client.end()


def callers(stage):
    return {"agent" if call.caller else "client" for call in stage.deletes()}


def test_compute_engine_alone_without_agent_and_client(cloud):
    """Nothing ever works on the instance, and nobody watches it."""
    cloud.emulator.inject(Fault("no_startup_script"))
    stage = Stage(cloud)
    stage.submit("-Pgce.max_hours=0.5", "-Pgce.rescue_minutes=10")
    wait_until(lambda: [i for i in cloud.emulator.instances() if i["status"] == "RUNNING"])
    killed(stage)

    cloud.emulator.advance(39 * 60)
    assert stage.names != []
    cloud.emulator.advance(2 * 60)
    wait_until(lambda: stage.names == [], what="the deletion at the deadline")

    assert stage.deletes() == []
    code, output = stage.mlflow_gce("attach", stage.run_id)
    assert code == 1, output
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("KILLED", "deadline")


def test_the_agent_alone_without_a_client(cloud):
    stage = Stage(cloud)
    with stage.stopped_at("epoch 1"):
        killed(stage)

    wait_until(lambda: stage.names == [], what="the instance's own deletion")

    assert callers(stage) == {"agent"}


def test_the_client_alone_where_the_agent_may_not_delete(cloud):
    stage = Stage(cloud)

    code = stage.submit(STORAGE_ONLY).end()

    assert code == 0, stage.client.text
    assert callers(stage) == {"client"}
    assert cloud.only_run().info.status == "FINISHED"


def test_a_person_alone_reaps_what_could_not_delete_itself(cloud):
    """The agent may not delete, and its client is gone: it powers off, and only its disk bills."""
    stage = Stage(cloud)
    with stage.stopped_at("epoch 2", STORAGE_ONLY):
        killed(stage)
    wait_until(
        lambda: [i for i in cloud.emulator.instances() if i["status"] == "TERMINATED"],
        what="the agent's power-off",
    )
    name = stage.instance

    code, output = stage.mlflow_gce("reap")

    assert code == 0, output
    assert name in output
    assert callers(stage) == {"client"}
    assert stage.names == []
    code, output = stage.mlflow_gce("attach", stage.run_id)
    assert code == 0, output
    assert cloud.only_run().info.status == "FINISHED"


def test_a_kept_instance_is_there_to_be_rescued_until_its_deadline(cloud):
    """Neither `ps` nor `reap` takes it, nor a colleague's with another bucket configured."""
    stage = Stage(cloud)
    limits = ["-Pgce.max_hours=0.5", "-Pgce.rescue_minutes=10"]
    assert stage.submit("-Pgce.results.require=[no-such-file]", *limits).end() == 1
    assert cloud.only_run().data.tags["gce.end_reason"] == "results_unverified"
    cloud.emulator.create_bucket(f"{cloud.bucket}-colleague")
    colleague = {"MLFLOW_GCE_BUCKET": f"{cloud.bucket}-colleague", "LOGNAME": "colleague"}

    for words, environ in ((["ps"], {}), (["reap"], {}), (["reap", "--collect"], colleague)):
        code, output = stage.mlflow_gce(*words, **environ)
        assert code == 0, output
    code, output = stage.mlflow_gce("rescue", stage.run_id, "rescued")

    assert code == 0, output
    assert stage.names == [f"mlflow-{stage.run_id}-1"]
    rescued = cloud.directory / "rescued"
    assert "epoch 2 done" in (rescued / "run.log").read_text()
    (result,) = (rescued / "bucket").rglob("result.txt")
    assert result.read_bytes() == b"done\n"
    cloud.emulator.advance(38 * 60)
    assert stage.names != [], "two minutes left"
    cloud.emulator.advance(3 * 60)
    wait_until(lambda: stage.names == [], what="the deletion at the deadline")
    assert stage.deletes() == []
    code, output = stage.mlflow_gce("attach", stage.run_id)
    assert code == 1
    assert "no longer exists; nothing bills" in output
    assert cloud.only_run().data.tags["gce.end_reason"] == "results_unverified"


def test_a_host_error_without_a_client_leaves_a_disk_until_the_next_command(cloud):
    stage = Stage(cloud)
    with stage.stopped_at("epoch 1"):
        killed(stage)
        cloud.emulator.power_off(stage.instance)
        (instance,) = cloud.emulator.instances()
        assert instance["status"] == "TERMINATED", "disk only"

    code, output = stage.mlflow_gce("attach", stage.run_id)

    assert code == 0, output
    run = cloud.only_run()
    assert run.info.status == "FINISHED"
    points = [m.step for m in cloud.client.get_metric_history(run.info.run_id, "loss")]
    assert points == [1, 2], "everything acknowledged, once"
    assert stage.names == []
