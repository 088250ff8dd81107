"""Settings that cannot be: one sentence, before anything is trained."""

import os
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2]))
import train
from settings import Config

CONF = Path(__file__).parents[2] / "conf"


def composed(
    model: str = "cnn", more: dict[str, object] | None = None, **trainer: object
) -> Config:
    groups = {"data": "mnist", "model": model, "optimizer": "sgd", "trainer": "default"}
    tree = OmegaConf.create(
        {group: OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in groups.items()}
    )
    tree.trainer.update(trainer)
    for key, value in (more or {}).items():
        OmegaConf.update(tree, key, value)
    tree.registry = {"name": None}
    return train.typed(tree)


def test_a_whole_float_is_an_integer() -> None:
    assert composed(epochs=5.0).trainer.epochs == 5


@pytest.mark.parametrize("value", ["ten", 2.5, None])
def test_epochs_that_are_no_number_are_refused_by_name(
    value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"train\.py: trainer\.epochs: .*"):
        composed(epochs=value)


@pytest.mark.parametrize("key", ["epochs", "batch_size"])
def test_less_than_one_is_refused(key: str) -> None:
    with pytest.raises(SystemExit, match=f"trainer.{key}"):
        composed(**{key: 0})


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("mlp", "trainer.batch_size", 1),  # nothing to normalise over
        ("resnet18", "model.width", 32),  # torchvision has none
        ("cnn", "model.width", 0),
        ("cnn", "data.shift", -1),
        ("cnn", "optimizer.lr", 0.0),
        ("cnn", "optimizer.lr", float("nan")),
        ("cnn", "optimizer.weight_decay", -0.1),
        ("cnn", "trainer.label_smoothing", 1.5),
        ("cnn", "trainer.ema", 1.0),
        ("cnn", "trainer.threads", -3),
        ("cnn", "trainer.patience", 0),
    ],
)
def test_numbers_that_no_training_can_use_are_refused_by_name(
    model: str, key: str, value: float
) -> None:
    with pytest.raises(SystemExit, match=rf"train\.py: {key}: .*is needed"):
        composed(model, {key: value})
    composed(model, {"trainer.patience": 1, "trainer.ema": 0, "data.shift": 0})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(SystemExit, match=r"trainer\.device: cuda.* no GPU"):
        train.prepare(composed(device="cuda").trainer)


def test_without_a_list_of_its_cpus_the_machine_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS and Windows have none."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert 1 <= train.physical_cores() <= (os.cpu_count() or 1)


def test_a_key_nobody_knows_is_refused() -> None:
    with pytest.raises(SystemExit, match="epoch"):
        composed(epoch=3)


@pytest.mark.parametrize(("key", "value"), [("device", "gpu"), ("precision", "bf61")])
def test_a_name_nobody_knows_is_refused_with_the_choice(key: str, value: str) -> None:
    with pytest.raises(SystemExit, match=rf"trainer\.{key}.*{value}.*cpu|float32"):
        composed(**{key: value})


def test_the_configuration_and_the_mlproject_agree_on_defaults() -> None:
    parameters = OmegaConf.load(CONF.parent / "MLproject").entry_points.main.parameters
    config = composed()
    assert parameters.epochs.default == config.trainer.epochs
    assert parameters.batch_size.default == config.trainer.batch_size
    assert parameters.seed.default == config.trainer.seed
    assert parameters.lr.default == config.optimizer.lr


@pytest.mark.parametrize("name", list(train.MODELS))
def test_every_model_turns_grey_images_into_ten_logits_and_learns(name: str) -> None:
    width = OmegaConf.load(CONF / "model" / f"{name}.yaml").width
    model = train.Classifier(train.MODELS[name](width), torch.rand(8, 1, 28, 28))
    logits = model(torch.rand(4, 1, 28, 28))
    assert logits.shape == (4, 10)
    torch.autograd.backward(logits.square().mean())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
