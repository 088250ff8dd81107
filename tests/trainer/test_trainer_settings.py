"""Settings that cannot be: one sentence, before anything is trained."""

import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2]))
import train

CONF = Path(__file__).parents[2] / "conf"


def composed(**trainer: object) -> train.Config:
    groups = {"data": "mnist", "model": "cnn", "optimizer": "sgd", "trainer": "default"}
    tree = OmegaConf.create(
        {group: OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in groups.items()}
    )
    tree.trainer.update(trainer)
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
