"""The client's store: a server that stops and a file that moves, while the instance trains."""

import shutil
import signal

import pytest
from conftest import PROJECTS, wait_until
from mlflow_server import MlflowServer

pytestmark = pytest.mark.rotating(one_in=3)

PLAIN = PROJECTS / "plain"


@pytest.fixture
def server(cloud):
    store = f"sqlite:///{cloud.directory / 'mlflow.db'}"
    found = MlflowServer(cloud.directory, store, cloud.environ)
    try:
        found.start(seconds=60)
        cloud.environ["MLFLOW_TRACKING_URI"] = found.url
        yield found
    finally:
        found.kill()


def test_metrics_appear_at_the_client_while_training_runs(cloud, server):
    following = cloud.start_run(PLAIN, "-P", "steps=40", "-P", "pause=0.25")
    following.wait_for("step 2 of")

    run_id = cloud.only_run().info.run_id
    wait_until(lambda: "loss" in cloud.client.get_run(run_id).data.metrics, seconds=30)
    assert cloud.client.get_run(run_id).info.status == "RUNNING"
    assert cloud.emulator.instances() != []

    assert following.end() == 0, following.text


def test_the_store_goes_away_and_comes_back(cloud, server):
    """Training does not notice; the client that follows brings everything in when it is back."""
    following = cloud.start_run(PLAIN, "-P", "steps=40", "-P", "pause=0.25")
    following.wait_for("step 3 of")

    server.kill()
    database = cloud.directory / "mlflow.db"
    away = cloud.directory / "away.db"
    shutil.move(database, away)
    following.wait_for("GET says 404")
    assert cloud.emulator.instances() == []
    shutil.move(away, database)
    server.start(seconds=60)

    assert following.end(seconds=120) == 0, following.text
    assert "its metrics wait in the bucket" in following.text
    run = cloud.only_run()
    assert run.info.status == "FINISHED"
    history = cloud.client.get_metric_history(run.info.run_id, "loss")
    assert [m.step for m in history] == list(range(1, 41))


def test_a_client_that_was_gone_has_it_all_after_a_sync(cloud, server):
    following = cloud.start_run(PLAIN, "-P", "steps=20", "-P", "pause=0.25")
    following.wait_for("step 3 of")
    following.send(signal.SIGKILL)
    following.end()
    run_id = cloud.only_run().info.run_id
    server.kill()
    wait_until(lambda: cloud.emulator.instances() == [], what="the instance's own deletion")
    server.start(seconds=60)

    code, output = cloud.mlflow_gce("sync", run_id)

    assert code == 0, output
    run = cloud.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    history = cloud.client.get_metric_history(run_id, "loss")
    assert [m.step for m in history] == list(range(1, 21))
