"""What is found wrong with a sweep's jobs before the first of them costs anything."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gce_backend.budget import within_cost
from gce_backend.compose import check_type
from gce_backend.config import Settings
from gce_backend.errors import ConfigError
from gce_backend.sweep.capacity import Capacity, quota_reader
from gce_backend.sweep.jobs import SweepJob

log = logging.getLogger(__name__)

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_NEEDED_VARIABLE = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)\s*\}")


class TypeChecks:
    """Holds jobs' words against the defaults that they replace.

    Args:
        loader: Hydra's; config: the sweep's own.
    """

    def __init__(self, loader: Any, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        self._bases: dict[tuple[str, ...], DictConfig | None] = {}

    def check(self, words: Sequence[str], composed: DictConfig) -> None:
        """Refuse a word for a number, and a fraction for a whole number.

        Other sweepers than Hydra's basic one choose numbers by themselves, from a range that was
        given on purpose: of theirs, what the user wrote for all jobs is checked.

        Raises:
            ConfigError: names key, default and value.
        """
        if not is_basic(self._config):
            written = set(self._config.hydra.overrides.task)
            words = [word for word in words if word in written]
        choices = composed.hydra.runtime.choices
        groups = tuple(word for word in words if word.partition("=")[0].lstrip("+~") in choices)
        base = self._base(groups)
        if base is not None:
            for word in (each for each in words if each not in groups):
                check_type(word, base, lambda: composed)

    def _base(self, groups: tuple[str, ...]) -> DictConfig | None:
        """The tree with these groups, and no value changed; None where it needs one to compose."""
        if groups not in self._bases:
            try:
                self._bases[groups] = self._loader.load_sweep_config(self._config, list(groups))
            except (HydraException, OmegaConfBaseException):
                self._bases[groups] = None
        return self._bases[groups]


def is_basic(config: DictConfig) -> bool:
    """Whether Hydra's own sweeper is at work, which runs what was written and nothing else."""
    return str(config.hydra.sweeper.get("_target_", "")).endswith(".BasicSweeper")


def check_money(settings: Settings) -> None:
    """Refuse what ``gce.max_cost_usd`` cannot pay for. Raises ConfigError."""
    within_cost(settings)


def check_place(jobs: Sequence[SweepJob]) -> None:
    """Refuse jobs of several buckets or projects: a sweep is one thing in one place.

    Raises:
        ConfigError: names the first such job.
    """
    for job in jobs:
        if _place(job.settings) != _place(jobs[0].settings):
            raise ConfigError(
                f"{named(job.number, job.overrides)}: gce.project, gce.bucket and gce.prefix must "
                f"be the same for all jobs of a sweep; job {jobs[0].number} goes to "
                f"{_place(jobs[0].settings)}"
            )


def _place(settings: Settings) -> str:
    return f"gs://{settings.bucket}/{settings.gce.prefix} of project {settings.project!r}"


def check_leaving(config: DictConfig, jobs: Sequence[SweepJob]) -> None:
    """Without a client nobody starts the next job, and nobody hands an objective back.

    Raises:
        ConfigError: that is what these jobs would need.
    """
    if not is_basic(config):
        raise ConfigError(
            f"hydra.launcher.wait=false: the sweeper {config.hydra.sweeper.get('_target_')} needs "
            "every job's result before it chooses the next"
        )
    first = jobs[0].settings
    capacity = Capacity(quota_reader(first))
    fitting = sum(capacity.reserve(job.number, job.settings) is not None for job in jobs)
    room = min(fitting, first.gce.max_parallel or fitting)
    if room < len(jobs):
        raise ConfigError(
            f"hydra.launcher.wait=false: {len(jobs)} jobs, and {room} may run at once "
            f"(gce.max_parallel={first.gce.max_parallel}, {fitting} by the free quota). The "
            "others would need somebody to start them"
        )


def named(number: int, words: Sequence[str]) -> str:
    """A job, as messages name it."""
    return f"job {number} ({' '.join(words)})" if words else f"job {number}"


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of the launcher that Hydra takes as any. Raises ConfigError."""
    for key in ("gce", "env"):
        if not isinstance(options[key] or {}, Mapping):
            raise ConfigError(
                f"hydra.launcher.{key}={options[key]}: must be a map, as {{key: value}}"
            )
    direction = options["direction"]
    if direction not in (None, "minimize", "maximize"):
        raise ConfigError(f"hydra.launcher.direction={direction}: must be minimize or maximize")


def refuse_secrets(where: str, names: Iterable[Any]) -> None:
    """Refuse variables that look like secrets, by their names. Raises ConfigError."""
    found = [str(name) for name in names if _SECRET.search(str(name))]
    if found:
        raise ConfigError(
            f"{where}={found}: Hydra writes the values into multirun.yaml and .hydra/hydra.yaml, "
            "and they would travel through the bucket. Keep secrets in "
            "Secret Manager and let the task read them"
        )


def warn_of_variables(config: DictConfig) -> None:
    """Name what the config reads from an environment that instances do not have."""
    own = OmegaConf.to_container(config, resolve=False)
    assert isinstance(own, dict)
    own.pop("hydra", None)
    names = sorted(set(_NEEDED_VARIABLE.findall(json.dumps(own, default=str))))
    if names:
        log.warning(
            f"the config reads {', '.join(names)} from the environment, and an instance has none "
            "of this machine's. Set them with hydra.launcher.env={NAME: value}, never for secrets"
        )
