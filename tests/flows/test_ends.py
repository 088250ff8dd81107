"""How runs end: failing, cancelled, left alone, with their client killed. Nothing stays behind."""

import signal
import urllib.request

import pytest
from conftest import CHECKOUT, PROJECTS, wait_until

from gce_backend.emulator import Fault

pytestmark = pytest.mark.rotating(one_in=4)

PLAIN = PROJECTS / "plain"
LONG = ["-P", "steps=200", "-P", "pause=0.2"]


def artifact(cloud, run, name):
    return cloud.read(f"{run.info.artifact_uri.split('/', 3)[3]}/{name}")


def log_of(cloud, run):
    names = cloud.objects(f"mlflow-gce/runs/{run.info.run_id}/log/")
    return b"".join(cloud.read(name) for name in names).decode()


def test_a_trainer_that_raises(cloud):
    code, output = cloud.mlflow_run(PLAIN, "-P", "exit_code=3")

    assert code == 1, output
    assert "RuntimeError: this trainer was told to fail" in output.partition("exited nonzero")[2]
    run = cloud.only_run()
    assert run.info.status == "FAILED"
    assert run.data.tags["gce.end_reason"] == "exited_nonzero"
    assert "this trainer was told to fail" in log_of(cloud, run)
    assert artifact(cloud, run, "checkpoint.txt") == b"3"
    assert cloud.emulator.instances() == []


def test_the_exit_code_is_the_trainers(cloud, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "exit.py").write_text("raise SystemExit(37)\n")

    code, output = cloud.mlflow_run(project, "-e", "exit.py")

    assert code == 37, output
    assert cloud.only_run().info.status == "FAILED"


def test_ctrl_c_cancels_saves_and_deletes(cloud):
    following = cloud.start_run(PLAIN, *LONG)
    following.wait_for("step 2 of")

    following.send(signal.SIGINT)

    assert following.end() == 130, following.text
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("KILLED", "cancelled")
    assert int(artifact(cloud, run, "checkpoint.txt")) >= 2
    assert "GET says 404" in following.text
    assert "Traceback" not in following.text
    assert cloud.emulator.instances() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_detached_run_goes_on_and_can_be_stopped(cloud, number):
    following = cloud.start_run(PLAIN, *LONG)
    following.wait_for("step 2 of")

    following.send(number)

    assert following.end() == 128 + number, following.text
    run = cloud.only_run()
    assert f"mlflow-gce attach {run.info.run_id}" in following.text
    code, output = cloud.mlflow_gce("stop", run.info.run_id)
    assert code == 0, output
    assert cloud.only_run().info.status == "KILLED"


@pytest.mark.parametrize("words", [[], ["-P", "exit_code=3"]], ids=["succeeded", "failed"])
def test_coming_back_to_a_run_that_has_ended_changes_nothing_and_says_how(cloud, tmp_path, words):
    cloud.mlflow_run(PLAIN, *words)
    before = cloud.only_run()
    run_id, reason = before.info.run_id, before.data.tags["gce.end_reason"]
    history = cloud.read(f"mlflow-gce/runs/{run_id}/history.json")
    # Another machine's, which has no key of the run's.
    elsewhere = {"XDG_STATE_HOME": str(tmp_path / "elsewhere")}

    attached, followed = cloud.mlflow_gce("attach", run_id, **elsewhere)
    stopped, said = cloud.mlflow_gce("stop", run_id, **elsewhere)

    assert (attached, stopped) == ((0, 0) if reason == "succeeded" else (1, 1)), followed + said
    assert "SSH" not in followed + said
    told = f"run {run_id} had ended before: {reason.replace('_', ' ')}. No instance of it exists"
    assert said.count(told) == 1
    assert cloud.read(f"mlflow-gce/runs/{run_id}/history.json") == history
    assert cloud.objects(f"mlflow-gce/runs/{run_id}/cancel") == []
    after = cloud.only_run()
    assert after.info.end_time == before.info.end_time
    assert after.data.metrics["gce/cost_usd"] == before.data.metrics["gce/cost_usd"]


def test_a_second_ctrl_c_leaves_without_waiting_and_the_cancel_goes_on(cloud):
    """The trainer ignores SIGTERM, so that the first Ctrl-C takes its time."""
    following = cloud.start_run(PLAIN, "-e", "stubborn", *LONG, "-P", "gce.grace_seconds=25")
    following.wait_for("step 2 of")
    # Neither way of cancelling is through yet when the second signal comes.
    cloud.emulator.inject(Fault("unavailable", "instances.setMetadata"))
    cloud.emulator.inject(
        Fault("unavailable", "storage.objects.insert", f"{cloud.bucket}/*/cancel")
    )

    following.send(signal.SIGINT)
    following.wait_for("cancelling")
    following.send(signal.SIGINT)

    assert following.end(seconds=20) == 130, following.text
    run_id = cloud.only_run().info.run_id
    assert f"mlflow-gce attach {run_id}" in following.text
    wait_until(
        lambda: cloud.emulator.instances() == [], seconds=120, what="the instance's own deletion"
    )
    code, output = cloud.mlflow_gce("sync", run_id)
    assert code == 0, output
    assert cloud.only_run().info.status == "KILLED"


def test_leaving_a_cancel_that_reached_nobody_says_so_and_what_to_do(cloud):
    following = cloud.start_run(PLAIN, *LONG)
    following.wait_for("step 2 of")
    cloud.emulator.inject(Fault("unavailable", "instances.setMetadata", times=None))
    cloud.emulator.inject(
        Fault("unavailable", "storage.objects.insert", f"{cloud.bucket}/*/cancel", times=None)
    )

    following.send(signal.SIGINT)
    following.wait_for("cancelling")
    following.send(signal.SIGINT)

    assert following.end(seconds=30) == 130, following.text
    run_id = cloud.only_run().info.run_id
    assert "did not get through" in following.text
    assert f"mlflow-gce stop {run_id}" in following.text
    cloud.emulator.clear_faults()
    code, output = cloud.mlflow_gce("stop", run_id)
    assert code == 0, output
    assert cloud.only_run().info.status == "KILLED"


def test_a_killed_client_changes_nothing_but_who_watches(cloud):
    following = cloud.start_run(PLAIN, "-P", "steps=20", "-P", "pause=0.2")
    following.wait_for("step 2 of")
    following.send(signal.SIGKILL)
    following.end()

    wait_until(lambda: cloud.emulator.instances() == [], what="the instance's own deletion")

    assert cloud.only_run().info.status in ("RUNNING", "SCHEDULED")
    run_id = cloud.only_run().info.run_id
    code, output = cloud.mlflow_gce("attach", run_id[:8])
    assert code == 0, output
    assert "step 20 of 20" in output
    run = cloud.only_run()
    assert run.info.status == "FINISHED"
    history = cloud.client.get_metric_history(run_id, "loss")
    assert [m.step for m in history] == list(range(1, 21))


def test_a_client_killed_while_its_insert_is_under_way(cloud):
    following = cloud.start_run(PLAIN, "-P", "steps=5")
    wait_until(cloud.inserts, what="the insert")
    following.send(signal.SIGKILL)
    following.end()

    wait_until(lambda: cloud.emulator.instances() == [], what="the instance's own deletion")

    run_id = cloud.only_run().info.run_id
    code, output = cloud.mlflow_gce("attach", run_id)
    assert code == 0, output
    assert cloud.only_run().info.status == "FINISHED"
    history = cloud.client.get_metric_history(run_id, "loss")
    assert [m.step for m in history] == [1, 2, 3, 4, 5]
    assert artifact(cloud, cloud.only_run(), "result.txt") == b"done\n"
    assert len(cloud.inserts()) == 1


def test_a_bucket_that_refuses_the_client_ends_the_watching_and_not_the_run(cloud):
    following = cloud.start_run(PLAIN, "-P", "steps=20", "-P", "pause=0.2")
    following.wait_for("step 2 of")

    refused = Fault("forbidden", "storage.objects.get", f"{cloud.bucket}*", times=None)
    cloud.emulator.inject(refused)

    assert following.end() == 1, following.text
    run_id = cloud.only_run().info.run_id
    assert f"mlflow-gce attach {run_id}" in following.text
    assert "Traceback" not in following.text
    cloud.emulator.clear_faults()
    code, output = cloud.mlflow_gce("attach", run_id)
    assert code == 0, output
    assert cloud.only_run().info.status == "FINISHED"


def test_detached_by_configuration_then_attached(cloud):
    code, output = cloud.mlflow_run(PLAIN, "-P", "gce.follow=false")

    assert code == 0, output
    run_id = cloud.only_run().info.run_id
    assert f"mlflow-gce attach {run_id}" in output
    code, output = cloud.mlflow_gce("attach", run_id)
    assert code == 0, output
    assert cloud.only_run().info.status == "FINISHED"


def test_results_that_are_missing_keep_the_instance_and_say_so(cloud):
    config = '{"gce.results.require": ["result.txt", "no-such-file.bin"]}'

    code, output = cloud.mlflow_run(PLAIN, "--backend-config", config)

    assert code == 1, output
    run = cloud.only_run()
    assert run.info.status == "FAILED"
    assert run.data.tags["gce.end_reason"] == "results_unverified"
    assert "no-such-file.bin" in output
    assert "still bills" in output
    assert f"mlflow-gce rescue {run.info.run_id}\n  mlflow-gce stop --now" in output
    (instance,) = cloud.emulator.instances()
    assert instance["status"] == "RUNNING"
    code, output = cloud.mlflow_gce("rescue", run.info.run_id, "kept")
    assert code == 0, output
    assert f"To delete it, run:\n  mlflow-gce stop --now {run.info.run_id}" in output
    assert b"step 3 of 3" in (cloud.directory / "kept/run.log").read_bytes()
    assert list((cloud.directory / "kept/bucket").rglob("result.txt"))
    code, output = cloud.mlflow_gce("stop", "--now", run.info.run_id)
    assert code == 0, output
    assert cloud.emulator.instances() == []


def call(cloud, instance, verb):
    """One method of the API on an instance, as another client would call it."""
    zone = instance["zone"].rpartition("/")[2]
    path = f"projects/emulator-project/zones/{zone}/instances/{instance['name']}/{verb}"
    request = urllib.request.Request(cloud.emulator.compute_url + path, data=b"", method="POST")
    urllib.request.urlopen(request, timeout=10).close()


def test_an_instance_whose_host_failed_is_started_again_and_goes_on(cloud):
    following = cloud.start_run(PLAIN, "-P", "steps=20", "-P", "pause=0.2")
    following.wait_for("step 3 of")
    (instance,) = cloud.emulator.instances()

    cloud.emulator.power_off(instance["name"])

    assert following.end() == 0, following.text
    assert "hostError" in following.text
    assert "starting it again" in following.text
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.restarts"]) == ("FINISHED", "1")
    assert artifact(cloud, run, "result.txt") == b"done\n"
    assert len(cloud.inserts()) == 1


def test_an_instance_that_somebody_stopped_is_not_started_by_us_and_keeps_its_disk(cloud):
    following = cloud.start_run(PLAIN, "-P", "steps=20", "-P", "pause=0.2")
    following.wait_for("step 3 of")
    (instance,) = cloud.emulator.instances()

    call(cloud, instance, "stop")

    assert following.end() == 1, following.text
    assert f"gcloud compute instances start {instance['name']}" in following.text
    assert cloud.only_run().data.tags["gce.end_reason"] == "results_unverified"
    assert cloud.emulator.instances()[0]["status"] == "TERMINATED"
    code, output = cloud.mlflow_gce("stop", "--now", cloud.only_run().info.run_id)
    assert code == 0, output


def test_a_failing_delete_is_an_error_that_names_the_instance(cloud):
    cloud.emulator.inject(Fault("forbidden", "instances.delete", times=None))

    code, output = cloud.mlflow_run(PLAIN)

    assert code == 1, output
    assert "may still be billing" in output
    assert "gcloud compute instances delete mlflow-" in output
    assert cloud.only_run().info.status == "FINISHED"
    cloud.emulator.clear_faults()
    code, output = cloud.mlflow_gce("stop", "--now", cloud.only_run().info.run_id)
    assert code == 0, output


def test_a_model_that_cannot_be_logged_after_the_training_loses_nothing_else(cloud, tmp_path):
    """MLflow refuses PyTorch's new format without an input example, and only then."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text(
        "import mlflow, torch\n"
        "with mlflow.start_run():\n"
        "    mlflow.log_metric('loss', 0.5, step=1)\n"
        "    model = torch.nn.Linear(1, 1)\n"
        "    torch.save(model.state_dict(), 'weights.pt')\n"
        "    mlflow.pytorch.log_model(model, name='m', serialization_format='pt2')\n"
    )

    code, output = cloud.mlflow_run(project, "-e", "train.py")

    assert code == 1, output
    assert "input_example" in output.partition("exited nonzero")[2]
    run = cloud.only_run()
    assert (run.info.status, run.data.metrics["loss"]) == ("FAILED", 0.5)
    assert artifact(cloud, run, "workdir/weights.pt")


def test_this_projects_own_trainer_fails_readably_on_a_value_only_it_knows(cloud):
    code, output = cloud.mlflow_run(
        CHECKOUT, "-P", "overrides=data=digits trainer=debug trainer.device=abacus"
    )

    assert code == 1, output
    assert "abacus" in output
    assert cloud.only_run().info.status == "FAILED"
