"""A tracking server that the instance reaches too: the run is complete there without a client."""

import signal

import pytest
from agent.front import Front
from agent.tracking_server import TrackingServer
from conftest import wait_until
from mlflow.tracking import MlflowClient
from stores import address_of_this_machine

SECRET_TEXT = "s3cret-of-the-tracking-server"
TRAINER = """
import time, mlflow
with mlflow.start_run():
    for step in range(1, 31):
        mlflow.log_metric("loss", 1 / step, step=step)
        print(f"step {step}", flush=True)
        time.sleep(0.1)
    with mlflow.start_run(nested=True, run_name="child") as child:
        mlflow.log_text(child.info.run_id, "child.txt")
"""


@pytest.fixture
def door(tmp_path, empty_store):
    """A server that wants a token, at an address that this machine's instances reach."""
    server = TrackingServer(tmp_path, empty_store)
    front = Front(server.url, address_of_this_machine())
    front.authorization = f"Bearer {SECRET_TEXT}"
    front.store = MlflowClient(server.uri)
    yield front
    front.stop()
    server.stop()


def test_a_run_whose_client_was_killed_is_complete_on_a_remote_server(cloud, door, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text(TRAINER)
    cloud.environ["MLFLOW_TRACKING_URI"] = door.url
    cloud.environ["MLFLOW_TRACKING_TOKEN"] = SECRET_TEXT
    cloud.emulator.put_secret("mlflow-token", SECRET_TEXT)
    name = f"projects/{cloud.emulator.project}/secrets/mlflow-token"
    secret = ["-P", f"gce.tracking.token_secret={name}"]

    following = cloud.start_run(project, "-e", "train.py", *secret)
    following.wait_for("step 1")
    following.send(signal.SIGKILL)
    following.end()
    metadata = str([instance["metadata"] for instance in cloud.emulator.instances()])
    wait_until(lambda: cloud.emulator.instances() == [], what="the instance's own deletion")

    store = door.store
    experiments = [each.experiment_id for each in store.search_experiments()]
    (run,) = store.search_runs(experiments, "tags.`gce.end_reason` = 'succeeded'")
    assert run.info.status == "FINISHED"
    assert run.info.end_time > run.info.start_time
    history = store.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, 31))
    assert {"gce/seconds_training", "gce/cost_usd"} < set(run.data.metrics)
    (child,) = store.search_runs(experiments, "tags.`mlflow.runName` = 'child'")
    text = cloud.read(f"{child.info.artifact_uri.split('/', 3)[3]}/child.txt")
    assert len(text) == 32 and text.decode() != child.info.run_id  # it saw the provisional id
    everything = [cloud.read(each) for each in cloud.objects()]
    assert SECRET_TEXT not in metadata
    assert [data for data in everything if SECRET_TEXT.encode() in data] == []
