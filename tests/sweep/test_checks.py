"""Which of a job's words are held against the program's defaults."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from gce_backend.errors import ConfigError
from gce_backend.sweep.checks import TypeChecks

DEFAULTS = {"mlp": {"epochs": 5, "width": 8}, "cnn": {"epochs": 5, "width": 0.5}}


class Loader:
    """Composes as Hydra does: a group, and values."""

    def load_sweep_config(self, config: Any, words: list[str]) -> DictConfig:
        given = dict(word.split("=") for word in words)
        model = given.pop("model", "mlp")
        values = {key: OmegaConf.create(f"v: {text}").v for key, text in given.items()}
        hydra = {"runtime": {"choices": {"model": model}}}
        return OmegaConf.create({**DEFAULTS[model], **values, "hydra": hydra})


def check(*words: str, sweeper: str = "hydra.BasicSweeper", written: tuple[str, ...] = ()) -> None:
    hydra = {"sweeper": {"_target_": sweeper}, "overrides": {"task": list(written)}}
    loader, config = Loader(), OmegaConf.create({"hydra": hydra})
    TypeChecks(loader, config).check(words, loader.load_sweep_config(config, list(words)))


@pytest.mark.parametrize("words", [("epochs=ten",), ("epochs=1.5",), ("model=mlp", "width=0.7")])
def test_a_word_that_cannot_stand_for_its_default_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="number like the default"):
        check(*words)


def test_the_defaults_are_those_of_the_jobs_own_groups() -> None:
    check("model=cnn", "width=0.7", "epochs=6")


def test_numbers_that_another_sweeper_chose_are_its_business_and_what_was_written_is_not() -> None:
    check("epochs=1.5", sweeper="OptunaSweeper", written=("epochs=interval(1,2)",))

    with pytest.raises(ConfigError, match="epochs"):
        check("epochs=1.5", "x=1", sweeper="OptunaSweeper", written=("epochs=1.5", "x=range(3)"))
