"""The trainer's settings, with their types: conf/ has the values."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class Data:
    name: str
    root: str
    shift: int


@dataclass
class Model:
    name: str
    width: int


@dataclass
class Optimizer:
    name: str
    lr: float
    weight_decay: float


@dataclass
class Trainer:
    epochs: int
    batch_size: int
    seed: int
    label_smoothing: float
    ema: float
    target_accuracy: float | None
    patience: int | None
    device: str
    precision: str
    compile: bool
    threads: int | None


@dataclass
class Registry:
    name: str | None


@dataclass
class Config:
    data: Data
    model: Model
    optimizer: Optimizer
    trainer: Trainer
    registry: Registry


def typed(cfg: DictConfig) -> Config:
    """The trainer's settings, checked against the classes above.

    Raises SystemExit with one sentence that names the key. `machine` and `gce` are nobody's
    business here.
    """
    plain = {group: dict(cfg[group]) for group in Config.__annotations__}
    for values in plain.values():
        for key, value in values.items():
            if isinstance(value, float) and value.is_integer():
                values[key] = int(value)  # MLflow's numbers are floats: 5.0 epochs are 5
    try:
        checked = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
        assert isinstance(checked, Config)
    except OmegaConfBaseException as error:
        sys.exit(f"train.py: {error.full_key}: {str(error).splitlines()[0]}")
    for key, value, choice in (
        ("data.name", checked.data.name, ("mnist", "fashion_mnist", "digits")),
        ("model.name", checked.model.name, ("cnn", "mlp", "resnet18")),
        ("optimizer.name", checked.optimizer.name, ("sgd", "adamw")),
        ("trainer.device", checked.trainer.device, ("auto", "cpu", "cuda")),
        ("trainer.precision", checked.trainer.precision, ("float32", "bf16", "fp16")),
    ):
        if value not in choice:
            sys.exit(f"train.py: {key}: {value!r} is none of {', '.join(choice)}")
    for key, is_usable, needed in numbers(checked):
        if not is_usable:
            sys.exit(f"train.py: {key}: {needed} is needed")
    return checked


def numbers(cfg: Config) -> Iterator[tuple[str, bool, str]]:
    """Each setting that is a number, whether a training can use it, and what one can use."""
    trainer = cfg.trainer
    yield "data.shift", cfg.data.shift >= 0, "0 or more"
    yield "model.width", cfg.model.width >= 1, "at least 1"
    if cfg.model.name == "resnet18":
        yield "model.width", cfg.model.width == 64, "64, the only width torchvision offers,"
    yield "optimizer.lr", 0 < cfg.optimizer.lr < math.inf, "more than 0"
    yield "optimizer.weight_decay", 0 <= cfg.optimizer.weight_decay < math.inf, "0 or more"
    yield "trainer.epochs", trainer.epochs >= 1, "at least 1"
    yield "trainer.batch_size", trainer.batch_size >= 2, "at least 2, for batch normalisation,"
    yield "trainer.label_smoothing", 0 <= trainer.label_smoothing <= 1, "0 to 1"
    yield "trainer.ema", 0 <= trainer.ema < 1, "0 to less than 1"
    yield "trainer.patience", trainer.patience is None or trainer.patience >= 1, "at least 1"
    yield "trainer.threads", trainer.threads is None or trainer.threads >= 1, "at least 1"
