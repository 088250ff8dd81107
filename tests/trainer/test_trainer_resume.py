"""An interrupted training ends exactly as one that was left alone."""

import json
import sys

import pytest
import torch
from omegaconf import OmegaConf
from sandbox import FAST, Sandbox

pytestmark = [
    pytest.mark.flow,
    pytest.mark.rotating(one_in=5),
    pytest.mark.timeout(900),  # three trainings
]

# Ends a training as a preemption does, with no handler and no cleanup, at the worst moment: the
# second epoch's checkpoint is stored, and its metrics are not.
INTERRUPTED = """
import os, runpy, mlflow
log_metrics = mlflow.log_metrics
def until_epoch_2(*args, **named):
    if named["step"] == 2:
        os._exit(137)
    log_metrics(*args, **named)
mlflow.log_metrics = until_epoch_2
runpy.run_path("train.py", run_name="__main__")
"""


def test_resumed_equals_uninterrupted_bit_for_bit(sandbox: Sandbox) -> None:
    words = ("data=digits", "model=cnn", "trainer.epochs=4")
    sandbox.train(*words)
    run_id = sandbox.client.create_run("0").info.run_id
    (sandbox.root / "interrupted.py").write_text(INTERRUPTED)
    sandbox.start("python", "interrupted.py", *words, code=137, MLFLOW_RUN_ID=run_id)
    done = sandbox.train(*words, MLFLOW_RUN_ID=run_id)
    assert "continues after epoch 2" in done.stdout

    resumed = sandbox.client.get_run(run_id)
    (whole,) = [run for run in sandbox.runs() if run.info.run_id != run_id]
    weights = [torch.load(sandbox.artifact(run, "model.pt")) for run in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics = [
        json.loads(sandbox.artifact(run, "metrics.json").read_text()) for run in (whole, resumed)
    ]
    for name in ("epoch", "train_loss", "test_loss", "test_accuracy", "learning_rate"):
        assert metrics[0][name] == metrics[1][name], name
    points = sandbox.client.get_metric_history(run_id, "test_accuracy")
    assert [point.step for point in points] == [1, 2, 3, 4]


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(sandbox: Sandbox) -> None:
    sandbox.train("-m", *FAST, "trainer.epochs=1", "trainer.seed=1,1,2")
    first, again, other = (run.data.metrics["test_loss"] for run in sandbox.runs())
    assert first == again != other


def test_a_sweep_is_one_run_per_value(sandbox: Sandbox) -> None:
    sandbox.train("-m", *FAST, "trainer.epochs=1", "optimizer.lr=0.1,0.01")
    assert [run.data.params["optimizer.lr"] for run in sandbox.runs()] == ["0.1", "0.01"]
    assert {run.info.status for run in sandbox.runs()} == {"FINISHED"}


def test_mixed_precision_trains(sandbox: Sandbox) -> None:
    sandbox.train("data=digits", "model=cnn", "trainer.epochs=1", "trainer.precision=bf16")
    assert sandbox.runs()[0].info.status == "FINISHED"


def test_a_training_that_diverged_ends_and_says_so(sandbox: Sandbox) -> None:
    done = sandbox.train(*FAST, "optimizer.lr=1e30", "trainer.epochs=5")
    assert "diverged" in done.stdout and done.stdout.count("epoch ") == 1


def test_two_trainings_at_once_write_to_directories_of_their_own(sandbox: Sandbox) -> None:
    """Started together, as a script's loop in the background does it."""
    assert (
        sandbox.runs() == []
    )  # MLflow makes the store; two that make it at once do not go together
    words = " ".join([sys.executable, "train.py", *FAST, "trainer.epochs=1"])
    sandbox.start("bash", "-c", f"{words} trainer.seed=0 & {words} trainer.seed=1 & wait")
    runs = sandbox.runs()
    assert len(runs) == 2
    assert len(list(sandbox.root.glob("outputs/*/*/model.pt"))) == 2
    for run in runs:
        kept = OmegaConf.load(sandbox.artifact(run, "config.yaml"))
        assert str(kept.trainer.seed) == run.data.params["trainer.seed"]
        metrics = json.loads(sandbox.artifact(run, "metrics.json").read_text())
        assert metrics["test_accuracy"][-1] == run.data.metrics["test_accuracy"]


def test_it_stops_at_the_accuracy_asked_for(sandbox: Sandbox) -> None:
    sandbox.train(*FAST, "trainer.epochs=9", "trainer.target_accuracy=20")
    assert (
        len(json.loads(sandbox.artifact(sandbox.runs()[0], "metrics.json").read_text())["epoch"])
        < 9
    )
