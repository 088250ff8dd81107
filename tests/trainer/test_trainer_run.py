"""What one training leaves in the store."""

import csv
import json

import mlflow
import pytest
import torch
from sandbox import FAST, Sandbox

pytestmark = [
    pytest.mark.flow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("fast"),  # one training for all of them
]

METRICS = {
    "train_loss",
    "test_loss",
    "test_accuracy",
    "learning_rate",
    "images_per_second",
    "epoch_seconds",
}


def test_every_epoch_has_every_metric_with_steps_from_one(fast: Sandbox) -> None:
    (run,) = fast.runs()
    for name in METRICS:
        history = fast.client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in history] == [1, 2], name


def test_parameters_are_the_trainers_own_settings(fast: Sandbox) -> None:
    params = fast.runs()[0].data.params
    assert params["optimizer.lr"] == "0.2"
    assert params["trainer.epochs"] == "2"
    assert {key.split(".")[0] for key in params} == {"data", "model", "optimizer", "trainer"}


def test_the_dataset_is_an_input_of_the_run(fast: Sandbox) -> None:
    (dataset,) = fast.runs()[0].inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("digits", "training")


def test_metrics_json_has_the_labs_lists(fast: Sandbox) -> None:
    (run,) = fast.runs()
    metrics = json.loads(fast.artifact(run, "metrics.json").read_text())
    assert metrics["epoch"] == [1, 2]
    assert len(metrics["test_loss"]) == 2
    assert metrics["test_accuracy"][-1] == run.data.metrics["test_accuracy"]


def test_model_pt_is_a_state_dict_that_opens_on_a_cpu(fast: Sandbox) -> None:
    state = torch.load(fast.artifact(fast.runs()[0], "model.pt"), map_location="cpu")
    assert sum(tensor.numel() for tensor in state.values()) > 200_000


def test_the_other_artifacts_are_there(fast: Sandbox) -> None:
    (run,) = fast.runs()
    names = {file.path for file in fast.client.list_artifacts(run.info.run_id)}
    figures = {"training_curves", "confusion_matrix", "worst_digits", "calibration"}
    assert names >= {"config.yaml", "checkpoints", *(f"{name}.png" for name in figures)}


def test_what_the_classes_reached_is_a_table_and_the_worst_one_a_metric(fast: Sandbox) -> None:
    (run,) = fast.runs()
    with fast.artifact(run, "class_accuracy.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == [str(number) for number in range(10)]
    worst = min(float(row["accuracy"]) for row in table)
    assert run.data.metrics["worst_class_accuracy"] == pytest.approx(worst, abs=0.01)
    assert 0 <= run.data.metrics["calibration_error"] <= 100


def test_the_logged_model_takes_grey_values_in_batches_of_any_size(
    fast: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fast.root)
    mlflow.set_tracking_uri(f"sqlite:///{fast.root}/mlflow.db")
    model = mlflow.pytorch.load_model(f"runs:/{fast.runs()[0].info.run_id}/model")
    for count in (1, 7):
        assert model(torch.rand(count, 1, 28, 28)).shape == (count, 10)


@pytest.mark.rotating(one_in=2)
def test_a_good_run_prints_its_epochs_and_no_warning(fast: Sandbox) -> None:
    done = fast.train(*FAST, "trainer.epochs=1", "hydra.job.name=second")
    assert done.stdout.startswith("epoch 1/1  train loss ")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    fast.client.delete_run(fast.runs()[-1].info.run_id)


@pytest.mark.rotating(one_in=2)
def test_the_model_is_registered_under_the_name_asked_for(fast: Sandbox) -> None:
    fast.train(*FAST, "trainer.epochs=1", "registry.name=digits")
    run_id = fast.runs()[-1].info.run_id
    (version,) = fast.client.search_model_versions("name='digits'")
    assert version.run_id == run_id
    fast.client.delete_run(run_id)
