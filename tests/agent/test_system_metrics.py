"""What the agent logs of its machine, held against MLflow's own monitors."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gce_backend.agent import system_metrics
from gce_backend.agent.system_metrics import Sampler, SystemMetrics

from .cloud import wait_for
from .instance import TestInstance

# Two GPUs as nvidia-smi shows them; the second does not tell its power.
NVIDIA_SMI = "printf '0, 87, 1024, 24576, 35.50, 72.00\\n1, 0, 0, 24576, [N/A], [N/A]\\n'"


def names_in_mlflow(file: str) -> set[str]:
    """The metric names in the source of one of MLflow's monitors, with ``0`` for a GPU's index."""
    import importlib.util

    spec = importlib.util.find_spec("mlflow")  # finds it without importing it
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "system_metrics" / "metrics" / file
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "self._metrics":
            found.add(ast.unparse(node.slice).lstrip("f").strip("'\"").replace("{i}", "0"))
    return found


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{NVIDIA_SMI}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_the_names_are_mlflows(nvidia: None) -> None:
    files = ("cpu_monitor.py", "disk_monitor.py", "network_monitor.py", "gpu_monitor.py")
    wanted = {f"system/{name}" for file in files for name in names_in_mlflow(file)}

    found = set(Sampler().sample())

    assert {name for name in found if "gpu_1" not in name} == wanted


def test_a_gpu_that_does_not_tell_its_power_tells_the_rest(nvidia: None) -> None:
    values = Sampler().sample()

    assert values["system/gpu_0_utilization_percentage"] == 87
    assert values["system/gpu_0_memory_usage_megabytes"] == 1073.7
    assert values["system/gpu_0_memory_usage_percentage"] == 4.2
    assert values["system/gpu_0_power_usage_percentage"] == 49.3
    assert values["system/gpu_1_memory_usage_megabytes"] == 0
    assert "system/gpu_1_power_usage_watts" not in values


def test_values_come_from_proc_and_mean_the_time_since_the_last_look(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    stat, net = tmp_path / "stat", tmp_path / "net" / "dev"
    stat.write_text("cpu  100 0 100 700 100 0 0 0 0 0\n")
    net.write_text(
        "Inter-|\n face |\n    lo: 9 0 0 0 0 0 0 0 9 0\n  eth0: 1000 0 0 0 0 0 0 0 500 0\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable:  250000 kB\n")
    sampler = Sampler(proc=tmp_path)
    stat.write_text("cpu  190 0 100 705 105 0 0 0 0 0\n")
    net.write_text(
        "Inter-|\n face |\n    lo: 9000000 0 0 0 0 0 0 0 9 0\n  eth0: 3001000 0 0 0 0 0 0 0 500 0\n"
    )

    values = sampler.sample()

    assert values["system/cpu_utilization_percentage"] == 90.0
    assert values["system/system_memory_usage_percentage"] == 75.0
    assert values["system/system_memory_usage_megabytes"] == 768.0
    assert values["system/network_receive_megabytes"] == 3.0
    assert values["system/network_transmit_megabytes"] == 0.0


def test_an_unusual_kernel_costs_only_what_it_does_not_tell(tmp_path: Path) -> None:
    values = Sampler(proc=tmp_path).sample()

    assert "system/disk_usage_megabytes" in values
    assert not [name for name in values if "cpu" in name or "memory" in name]


def test_steps_go_on_and_a_full_disk_costs_one_sample(tmp_path: Path) -> None:
    steps: list[int] = []
    refused = [True]

    def write(values: dict[str, float], step: int) -> None:
        if refused.pop() if refused else False:
            raise OSError("no space left on device")
        steps.append(step)

    metrics = SystemMetrics(Sampler(proc=tmp_path), write, 0.01, first_step=7)
    metrics.start()
    wait_for(lambda: len(steps) > 2, "samples are written")
    metrics.stop()

    assert steps == list(range(7, 7 + len(steps)))


def test_a_gpu_that_hangs_is_left_alone_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the kernel, where SIGKILL does not reach it."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/asked\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(system_metrics, "_GPU_PATIENCE_S", 0.5)
    sampler = Sampler()
    with monkeypatch.context() as kernel:
        kernel.setattr(subprocess.Popen, "kill", lambda process: None)
        for _ in range(2):
            assert "system/disk_usage_megabytes" in sampler.sample()

    (pid,) = map(int, (tmp_path / "asked").read_text().split())
    os.kill(pid, signal.SIGKILL)  # it comes back
    program.write_text(f"#!/bin/sh\n{NVIDIA_SMI}\n")
    wait_for(lambda: "system/gpu_0_power_usage_watts" in sampler.sample(), "it is asked again")


class Stuck(Sampler):
    """Whose every sample waits for the event."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answers = 0, threading.Event()

    def sample(self, *, gpus: bool = True) -> dict[str, float]:
        self.asked += 1
        self.answers.wait(60)
        return {}


def test_a_sample_that_hangs_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "_GPU_PATIENCE_S", -4.9)  # none, with what stop() adds
    stuck = Stuck()
    metrics = SystemMetrics(stuck, lambda values, step: None, 0.01)
    metrics.start()
    wait_for(lambda: stuck.asked, "it samples")

    metrics.stop()

    assert (stuck.asked, stuck.answers.is_set()) == (1, False)
    stuck.answers.set()


def test_who_is_in_a_hurry_gets_no_last_sample() -> None:
    stuck = Stuck()
    metrics = SystemMetrics(stuck, lambda values, step: None, 60, hurries=lambda: True)
    metrics.start()
    metrics._last -= 60  # when the last one was taken

    metrics.stop()

    assert stuck.asked == 0


@pytest.mark.flow
def test_a_trainer_that_knows_nothing_of_it_has_them_on_its_run(instance: TestInstance) -> None:
    """Every interval, once at the end, and not doubled by MLflow's own in the trainer."""
    instance.run(f"{sys.executable} train.py", {"train.py": DOUBLING}, system_metrics_seconds=0.3)

    points = [
        point
        for record in instance.journal
        if record["path"] == "runs/log-batch"
        for point in record["body"]["metrics"]
    ]
    cpu = [point for point in points if point["key"] == "system/cpu_utilization_percentage"]
    assert [point["step"] for point in cpu] == list(range(len(cpu))) and len(cpu) > 3
    assert [point["value"] for point in points if point["value"] == 123456] == [123456]
    assert "[false 1]" in instance.log


# Logs a system metric that the agent has, and one that it has not, as MLflow's monitor does.
DOUBLING = """
import json, os, time, urllib.request
print(f"[{os.environ['MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING']} {os.environ['MLFLOW_GCE_ATTEMPT']}]")
points = [
    {"key": key, "value": 123456, "timestamp": 1, "step": 0}
    for key in ("system/cpu_utilization_percentage", "system/node_1/cpu_utilization_percentage")
]
body = {"run_id": os.environ["MLFLOW_RUN_ID"], "metrics": points}
request = urllib.request.Request(
    os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-batch",
    data=json.dumps(body).encode(), method="POST")
request.add_header("Authorization", "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"])
urllib.request.urlopen(request, timeout=5).read()
time.sleep(1.5)
"""
