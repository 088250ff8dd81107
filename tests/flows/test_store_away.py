"""The client's store: a server that stops and a file that moves, while the instance trains."""

import shutil
import signal
import subprocess
import urllib.request

import pytest
from conftest import MLFLOW, PROJECTS, wait_until

from gce_backend.emulator.ports import free_port

pytestmark = pytest.mark.rotating(one_in=3)

PLAIN = PROJECTS / "plain"


class Server:
    """A real `mlflow server` on a database file; it can be stopped and started again."""

    def __init__(self, cloud, database):
        self._cloud = cloud
        self._database = database
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self):
        store = ["--backend-store-uri", f"sqlite:///{self._database}"]
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        self._process = subprocess.Popen(
            [*MLFLOW, "server", *store, *address],
            env={**self._cloud.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=self._cloud.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, seconds=60, what="the server's answer")

    def stop(self):
        import os

        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self):
        assert self._process.poll() is None, "mlflow server ended"
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture
def server(cloud):
    found = Server(cloud, cloud.directory / "mlflow.db")
    found.start()
    cloud.environ["MLFLOW_TRACKING_URI"] = found.uri
    yield found
    found.stop()


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

    server.stop()
    database = cloud.directory / "mlflow.db"
    away = cloud.directory / "away.db"
    shutil.move(database, away)
    following.wait_for("GET says 404")
    assert cloud.emulator.instances() == []
    shutil.move(away, database)
    server.start()

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
    server.stop()
    wait_until(lambda: cloud.emulator.instances() == [], what="the instance's own deletion")
    server.start()

    code, output = cloud.mlflow_gce("sync", run_id)

    assert code == 0, output
    run = cloud.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    history = cloud.client.get_metric_history(run_id, "loss")
    assert [m.step for m in history] == list(range(1, 21))
