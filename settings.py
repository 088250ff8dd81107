"""The trainer's settings, with their types: conf/ has the values."""

import sys
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
    for name in ("epochs", "batch_size"):
        if getattr(checked.trainer, name) < 1:
            sys.exit(f"train.py: trainer.{name}: at least 1 is needed")
    return checked
