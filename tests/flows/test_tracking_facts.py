"""What a run says of itself in MLflow: its instance's facts, and how its process really ended."""

import shutil
import subprocess

import pytest
from conftest import PROJECTS

PLAIN = PROJECTS / "plain"


def git(directory, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", str(directory), *identity, *words], check=True)


def test_the_instances_facts_are_on_the_run(cloud, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(PLAIN, project)
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "one")
    (project / "new.txt").write_text("not committed\n")

    code, output = cloud.mlflow_run(project)

    assert code == 0, output
    run = cloud.only_run()
    tags, metrics = run.data.tags, run.data.metrics
    zone, instance = tags["gce.zone"], tags["gce.instance"]
    assert tags["gce.machine_type"] == "n1-standard-2"
    assert (tags["gce.spot"], tags["gce.attempt"], tags["gce.git.dirty"]) == ("false", "1", "true")
    assert tags["gce.command"] == "python main.py 3 0 0"
    assert "/global/images/family/" not in tags["gce.image"], "the image, not its family"
    assert tags["gce.image"].startswith("projects/ubuntu-os-cloud/global/images/ubuntu-")
    assert f"/zones/{zone}/instances/{instance}?project=" in tags["gce.console"]
    assert tags["gce.files"].endswith(f"{cloud.bucket}/mlflow-gce/runs/{run.info.run_id}")
    parts = [metrics[f"gce/seconds_{n}"] for n in ("boot", "environment", "training", "saving")]
    assert all(part >= 0 for part in parts)
    assert metrics["gce/seconds_instance"] == pytest.approx(sum(parts), abs=0.1)
    per_hour = float(tags["gce.usd_per_hour"])
    billed = max(60, metrics["gce/seconds_instance"])
    assert metrics["gce/cost_usd"] == pytest.approx(per_hour * billed / 3600, rel=0.01)
    assert tags["gce.price_date"]
    root = run.info.artifact_uri.split("/", 3)[3]
    assert "+not committed" in cloud.read(f"{root}/git.diff").decode()
    assert "gce/seconds" not in output


#: How a trainer ends -> what MLflow itself would say of the run, wrongly, and what is true.
ENDS = {
    "raise outside of a with-block": ("mlflow.start_run()\nraise ValueError('x')", 1),
    "sys.exit(3) outside of a with-block": ("mlflow.start_run()\nsys.exit(3)", 3),
    "sys.exit(0) in a with-block": ("with mlflow.start_run():\n    sys.exit(0)", 0),
    "SIGTERM": ("mlflow.start_run()\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(9)", 143),
    "os._exit": ("with mlflow.start_run():\n    os._exit(4)", 4),
    "no call of MLflow at all": ("", 0),
}


@pytest.mark.matrix(cells=1)
@pytest.mark.parametrize("end", ENDS)
def test_the_final_status_is_that_of_the_exit_code(cloud, tmp_path, end):
    script, expected = ENDS[end]
    project = tmp_path / "project"
    project.mkdir()
    (project / "end.py").write_text(f"import os, signal, sys, time\nimport mlflow\n{script}\n")

    code, output = cloud.mlflow_run(project, "-e", "end.py")

    assert code == expected, output
    info = cloud.only_run().info
    assert info.status == ("FAILED" if expected else "FINISHED")
    assert info.end_time is not None
