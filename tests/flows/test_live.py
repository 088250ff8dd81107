"""A run that is watched: its log over SSH, a command on its instance, keys that go with it."""

import signal

import pytest
from conftest import PROJECTS, wait_until

from gce_backend.emulator import Fault

pytestmark = pytest.mark.rotating(one_in=2)

PLAIN = PROJECTS / "plain"
LONG = ["-P", "steps=300", "-P", "pause=0.2"]


def keys(cloud):
    """The private keys that this client keeps."""
    return list((cloud.directory.parent / "state/mlflow-gce").rglob("id_ed25519"))


def test_a_run_is_watched_over_ssh_and_looked_into(cloud):
    following = cloud.start_run(PLAIN, *LONG)
    following.wait_for("step 2 of")
    run_id = cloud.only_run().info.run_id
    (key,) = keys(cloud)
    assert key.stat().st_mode & 0o777 == 0o600
    wait_until(
        lambda: f"mlflow-gce/runs/{run_id}/ssh_host_keys.json" in cloud.objects(), what="a pin"
    )

    code, output = cloud.mlflow_gce("ssh", run_id, "--", "echo $USER; exit 7")
    assert (code, output) == (7, "mlflow\n")
    # The bucket takes nothing more: what comes now comes over SSH.
    cloud.emulator.inject(
        Fault("forbidden", "storage.objects.insert", f"*{run_id}/log/*", times=None)
    )
    seen = following.text.count("step ")
    wait_until(lambda: following.text.count("step ") > seen + 20, what="the log goes on")
    cloud.emulator.clear_faults()

    following.send(signal.SIGINT)
    assert following.end() == 130, following.text
    steps = [line for line in following.text.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1]) for line in steps] == list(range(1, len(steps) + 1))
    assert keys(cloud) == []


def test_a_run_without_ssh_is_followed_from_the_bucket(cloud):
    code, output = cloud.mlflow_run(PLAIN, "-P", "gce.ssh.via=none")

    assert code == 0, output
    assert "step 3 of 3" in output
    assert "from the bucket" not in output
    (call,) = cloud.inserts()
    metadata = {item["key"]: item["value"] for item in call.body["metadata"]["items"]}
    assert "ssh-keys" not in metadata and "enable-oslogin" not in metadata
    assert metadata["block-project-ssh-keys"] == "TRUE"
    code, output = cloud.mlflow_gce("ssh", cloud.only_run().info.run_id)
    assert code == 1 and "gce.ssh.via=none" in output
