"""`mlflow.projects.run(..., backend="gce")`: a handle that waits, tells and cancels."""

import sys

import pytest
from conftest import PROJECTS

pytestmark = pytest.mark.rotating(one_in=3)

HEAD = """
import sys, mlflow
def main():
    handle = mlflow.projects.run(
        sys.argv[1], backend="gce", parameters=PARAMETERS, synchronous=SYNCHRONOUS
    )
    print("run", handle.run_id, flush=True)
"""
TAIL = """
if __name__ == "__main__":
    main()
"""


def program(body, parameters, synchronous=False):
    head = HEAD.replace("PARAMETERS", repr(parameters)).replace("SYNCHRONOUS", str(synchronous))
    return head + body + TAIL


def test_it_returns_once_the_instance_is_requested_and_waits_when_asked(cloud):
    body = """
    print("before", handle.get_status(), flush=True)
    print("succeeded", handle.wait(), handle.get_status(), flush=True)
"""
    source = program(body, {"steps": 10, "pause": 0.3})

    code, output = cloud.run(sys.executable, "-c", source, str(PROJECTS / "plain"))

    assert code == 0, output
    assert "succeeded True" in output
    assert output.index("run ") < output.index("succeeded True")
    run = cloud.only_run()
    assert run.info.status == "FINISHED"
    assert len(cloud.client.get_metric_history(run.info.run_id, "loss")) == 10


def test_cancel_saves_and_deletes(cloud):
    body = """
    handle.cancel()
    print("then", handle.get_status(), flush=True)
"""
    source = program(body, {"steps": 500, "pause": 0.2})

    code, output = cloud.run(sys.executable, "-c", source, str(PROJECTS / "plain"))

    assert code == 0, output
    assert cloud.only_run().info.status == "KILLED"
    assert cloud.emulator.instances() == []


def test_synchronous_runs_raise_when_the_training_fails(cloud):
    source = program("", {"exit_code": 1}, synchronous=True)

    code, output = cloud.run(sys.executable, "-c", source, str(PROJECTS / "plain"))

    assert code == 1, output
    assert "ExecutionException" in output
    assert cloud.only_run().info.status == "FAILED"
