"""What a training looks like afterwards: the curves, where the model errs, how sure it is."""

import csv
import json
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

CLASSES = 10
BINS = 15  # of confidence, as in Guo et al., On Calibration of Modern Neural Networks (2017)
WORST = 25  # digits shown


def write(
    directory: Path, history: list[dict[str, float]], images: Tensor, labels: Tensor, logits: Tensor
) -> list[Path]:
    """metrics.json, class_accuracy.csv and the figures, as files in `directory`.

    Images: N x 1 x 28 x 28 from 0 to 1; labels: N; logits: N x 10. A row of the history becomes
    one element of each list in metrics.json.
    """
    columns = [key for key in history[0] if key != "timestamp"]
    curves = {key: [row[key] for row in history] for key in columns}
    paths = [directory / "metrics.json", directory / "class_accuracy.csv"]
    finite = {key: [v if math.isfinite(v) else None for v in curves[key]] for key in columns}
    paths[0].write_text(json.dumps(finite, indent=1))  # JSON has no NaN
    with paths[1].open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "images", "accuracy"])
        table.writerows(
            (number, int((labels == number).sum()), f"{accuracy:.2f}")
            for number, accuracy in enumerate(class_accuracies(labels, logits))
        )
    for name, figure in {
        "training_curves.png": training_curves(curves),
        "confusion_matrix.png": confusion_figure(labels, logits),
        "worst_digits.png": worst_digits(images, labels, logits),
        "calibration.png": calibration_figure(labels, logits),
    }.items():
        paths.append(directory / name)
        figure.savefig(paths[-1])
    return paths


def scores(labels: Tensor, logits: Tensor) -> dict[str, float]:
    """Percent correct of the worst class, and the expected calibration error in percentage points.

    One number each, which a table of runs can sort by; a metric a class would be ten charts more.
    A model whose logits are no numbers has no calibration: NaN.
    """
    error = sum(
        share * abs(right - sure) for share, right, sure in calibration(labels, logits) if share
    )
    worst = min(class_accuracies(labels, logits))
    if not logits.isfinite().all():
        error = math.nan
    return {"worst_class_accuracy": worst, "calibration_error": 100 * error}


def class_accuracies(labels: Tensor, logits: Tensor) -> list[float]:
    """Percent correct of each class; 0 for a class without images."""
    matrix = confusion(labels, logits).double()
    return [float(value) for value in 100 * matrix.diagonal() / matrix.sum(1).clamp(min=1)]


def confusion(labels: Tensor, logits: Tensor) -> Tensor:
    """10 x 10 counts; a row is a true class, a column a predicted one."""
    pairs = labels * CLASSES + logits.argmax(1)
    return torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)


def calibration(labels: Tensor, logits: Tensor) -> list[tuple[float, float, float]]:
    """For each bin of confidence: its share of the images, share correct, mean confidence."""
    confidence, predicted = logits.softmax(1).max(1)
    correct = (predicted == labels).float()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    rows = []
    for number in range(BINS):
        inside = bins == number
        if inside.any():
            share = inside.float().mean().item()
            rows.append((share, correct[inside].mean().item(), confidence[inside].mean().item()))
        else:
            rows.append((0.0, 0.0, 0.0))
    return rows


def training_curves(curves: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(curves["epoch"], curves["train_loss"], "o-", label="train (smoothed labels)")
    left.plot(curves["epoch"], curves["test_loss"], "o-", label="test")
    left.set(xlabel="epoch", ylabel="loss")
    left.legend()
    right.plot(curves["epoch"], curves["test_accuracy"], "o-")
    right.set(xlabel="epoch", ylabel="test accuracy (%)")
    return figure


def confusion_figure(labels: Tensor, logits: Tensor) -> Figure:
    matrix = confusion(labels, logits)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    # The diagonal would outshine what there is to see: the errors.
    axes.imshow((matrix - torch.diag(matrix.diagonal())).numpy(), cmap="Reds")
    for row in range(CLASSES):
        for column in range(CLASSES):
            if count := int(matrix[row, column]):
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    ticks = range(CLASSES)
    axes.set(xlabel="predicted", ylabel="true, with percent correct", xticks=ticks)
    correct = enumerate(class_accuracies(labels, logits))
    axes.set_yticks(ticks, [f"{number}  {percent:.1f} %" for number, percent in correct])
    return figure


def worst_digits(images: Tensor, labels: Tensor, logits: Tensor) -> Figure:
    """The images whose true class the model thought least likely, with what it took them for."""
    probability = logits.softmax(1)
    order = probability[torch.arange(len(labels)), labels].argsort()[:WORST]
    figure = Figure(figsize=(7, 7.5), layout="constrained")
    for axes, index in zip(figure.subplots(5, 5).flat, order, strict=False):
        sure, taken = probability[index].max(0)
        axes.imshow(images[index, 0].numpy(), cmap="gray_r")
        axes.set_title(f"{labels[index]} as {taken} ({100 * sure:.0f} %)", fontsize=8)
        axes.set_axis_off()
    return figure


def calibration_figure(labels: Tensor, logits: Tensor) -> Figure:
    rows = [row for row in calibration(labels, logits) if row[0]]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="gray", label="as right as sure")
    axes.plot([row[2] for row in rows], [row[1] for row in rows], "o-", label="this model")
    axes.set(xlabel="confidence", ylabel="share correct")
    axes.legend()
    return figure
