"""An image whose Python has nothing: the environment is built from the package index, with uv."""

import pytest
from conftest import PROJECTS

pytestmark = pytest.mark.rotating(one_in=3)

EMPTY = "machine.image=projects/emulator-images/global/images/family/python-empty"


def test_an_empty_image_gets_its_environment_and_trains(cloud):
    code, output = cloud.mlflow_run(PROJECTS / "scikit", "-P", EMPTY, seconds=280)

    assert code == 0, output
    run = cloud.only_run()
    assert run.data.metrics["test_accuracy"] > 90
    root = run.info.artifact_uri.split("/", 3)[3]
    assert "mlflow-gce" in cloud.read(f"{root}/prefix.txt").decode()  # the agent's own folder


def test_an_image_that_has_everything_builds_nothing(cloud):
    code, output = cloud.mlflow_run(PROJECTS / "scikit")

    assert code == 0, output
    root = cloud.only_run().info.artifact_uri.split("/", 3)[3]
    assert "mlflow-gce" not in cloud.read(f"{root}/prefix.txt").decode()


def test_requirements_that_do_not_exist_fail_the_run_with_the_reason(cloud, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "MLproject").write_text(
        "entry_points: {main: {command: 'true'}}\npython_env: python_env.yaml\n"
    )
    (project / "python_env.yaml").write_text("dependencies: [numpy==0.0.0.1]\n")

    code, output = cloud.mlflow_run(project, "-P", EMPTY)

    assert code == 1, output
    assert "numpy" in output.partition("environment failed")[2]
    assert cloud.only_run().data.tags["gce.end_reason"] == "environment_failed"
