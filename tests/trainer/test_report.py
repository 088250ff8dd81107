"""The figures' numbers, on cases that can be counted by hand."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
import report


def sure(predicted: list[int], probability: float) -> Tensor:
    """Logits that give each predicted class that probability, and the others the same rest."""
    rest = (1 - probability) / (report.CLASSES - 1)
    probabilities = torch.full((len(predicted), report.CLASSES), rest)
    probabilities[torch.arange(len(predicted)), torch.tensor(predicted)] = probability
    return probabilities.log()


def test_a_row_of_the_confusion_is_a_true_class() -> None:
    matrix = report.confusion(torch.tensor([3, 3, 3, 7]), sure([3, 3, 5, 7], 0.9))
    assert (matrix[3, 3], matrix[3, 5], matrix[7, 7], matrix.sum()) == (2, 1, 1, 4)


def test_the_calibration_error_is_the_gap_between_being_sure_and_being_right() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    scores = report.scores(labels, sure([0, 1, 9, 9], 0.9))
    assert scores["calibration_error"] == pytest.approx(40, abs=0.01)
    assert scores["worst_class_accuracy"] == 0
    assert report.class_accuracies(labels, sure([0, 1, 9, 9], 0.9))[:3] == [100, 100, 0]


def test_a_model_that_is_no_number_is_not_a_calibrated_one() -> None:
    logits = torch.full((2, report.CLASSES), torch.nan)
    assert math.isnan(report.scores(torch.tensor([0, 1]), logits)["calibration_error"])


def test_metrics_json_is_json_whatever_the_metrics_are(tmp_path: Path) -> None:
    row = {"epoch": 1, "train_loss": math.nan, "test_loss": math.inf, "test_accuracy": 10.0}
    images, labels = torch.rand(10, 1, 28, 28), torch.arange(10)
    written = report.write(tmp_path, [row], images, labels, torch.full((10, 10), torch.nan))

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no JSON")

    curves = json.loads(written[0].read_text(), parse_constant=refuse)
    assert (curves["train_loss"], curves["test_loss"]) == ([None], [None])


def test_a_model_as_right_as_sure_has_no_calibration_error() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1])
    scores = report.scores(labels, sure([0, 0, 0, 0, 0], 0.8))
    assert scores["calibration_error"] == pytest.approx(0, abs=0.01)
