"""What every attempt of a run is made from, kept in its bucket: whoever comes back can go on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gce_backend.agent.paths import RunPaths
from gce_backend.config import Endpoints, Gce, Machine, Settings, usable_zones
from gce_backend.errors import ConfigError
from gce_backend.instance import Agent
from gce_backend.storage import Storage


@dataclass(frozen=True)
class Blueprint:
    """The settings of a run as they were composed at its submit, and its agent."""

    settings: Settings
    agent: Agent

    def save(self, storage: Storage, paths: RunPaths) -> None:
        """Put it beside the run's spec. Raises StorageError."""
        settings = self.settings
        storage.put_json(
            paths.blueprint,
            {
                "version": 1,
                "project": settings.project,
                "bucket": settings.bucket,
                "machines": [_plain(each) for each in (settings.machine, *settings.others)],
                "gce": _plain(settings.gce),
                "agent": dataclasses.asdict(self.agent),
            },
        )

    @classmethod
    def load(cls, storage: Storage, paths: RunPaths, endpoints: Endpoints) -> Blueprint | None:
        """None for a run that was submitted without one.

        Raises:
            StorageError: the bucket does not answer.
            ConfigError: another version of this package wrote what this one cannot read.
        """
        raw = storage.read_json(paths.blueprint)
        if raw is None:
            return None
        try:
            machine, *others = (_typed(Machine, each) for each in raw["machines"])
            gce: Gce = _typed(Gce, raw["gce"])
            settings = Settings(
                machine=machine,
                gce=gce,
                endpoints=endpoints,
                zones=usable_zones(machine, gce),
                project=raw["project"],
                bucket=raw["bucket"],
                others=tuple(others),
            )
            return cls(settings, Agent(**raw["agent"]))
        except (LookupError, TypeError, ValueError, OmegaConfBaseException) as error:
            raise ConfigError(
                f"{storage.uri(paths.blueprint)} cannot be read by this version of mlflow-gce "
                f"({error}); use the version that submitted the run"
            ) from error


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(OmegaConf.structured(node), enum_to_str=True)


def _typed(schema: type, raw: dict[str, Any]) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), raw))
