"""What must stay where it is: the client's credentials, the relay's token, the instance's own."""

import json
import uuid
from pathlib import Path

from conftest import PROJECTS

PLAIN = PROJECTS / "plain"
ACCESS_TOKEN = "ya29.emulator-"  # how the instance's own tokens begin


def test_no_secret_is_found_by_a_scan_and_any_trainer_has_system_metrics(cloud):
    """Planted with the client; looked for in metadata, bucket, tags, logs and arguments."""
    planted = {
        name: f"planted-{uuid.uuid4().hex}"
        for name in (
            "MLFLOW_TRACKING_USERNAME",
            "MLFLOW_TRACKING_PASSWORD",
            "MLFLOW_TRACKING_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "SOME_API_KEY",
        )
    }
    cloud.environ.update(planted)
    following = cloud.start_run(
        PLAIN, "-P", "steps=20", "-P", "pause=0.2", "-P", "gce.system_metrics=1"
    )
    following.wait_for("step 3 of 20")
    (instance,) = [one for one in cloud.emulator.instances() if "mlflow-" in one["name"]]
    directory = cloud.emulator.instance_directory(instance["name"])
    (state,) = directory.rglob("mlflow-gce/state.json")
    relay_token = json.loads(state.read_text())["token"]
    assert state.stat().st_mode & 0o077 == 0, "nobody but the agent's user reads it"
    running = processes()
    assert following.end() == 0, following.text

    run = cloud.only_run()
    told = {
        "metadata and labels": json.dumps(instance),
        "tags and parameters": json.dumps([run.data.tags, run.data.params]),
        "output": following.text,
        "arguments of all processes": "\n".join(arguments for arguments, _ in running),
        **{name: cloud.read(name).decode(errors="replace") for name in cloud.objects()},
    }
    secrets = [*planted.values(), relay_token, ACCESS_TOKEN]
    leaks = [
        (where, secret) for where, text in told.items() for secret in secrets if secret in text
    ]
    assert leaks == []
    # On the instance, the trainer knows the relay's token, and nobody anything of the client's.
    trainers = [one for _, one in running if f"MLFLOW_RUN_ID={run.info.run_id}\0" in one]
    assert trainers and all(relay_token in one for one in trainers)
    agents = [one for arguments, one in running if str(directory) in arguments + one]
    assert agents and not [name for name in planted if planted[name] in "".join(trainers + agents)]

    metrics = {key for key in run.data.metrics if key.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/disk_available_megabytes"} <= metrics
    history = cloud.client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in history] == list(range(len(history))) and len(history) > 1


def processes():
    """(arguments, environment) of every process on this machine, as root sees them."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_text(errors="replace")
            environment = (directory / "environ").read_text(errors="replace")
        except OSError:  # it has ended, or is another user's
            continue
        found.append((arguments, environment))
    return found
