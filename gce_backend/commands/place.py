"""Which Google Cloud project a command asks, and at which addresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gce_backend.config import Endpoints


@dataclass(frozen=True)
class Place:
    """A project, and where the APIs are."""

    project: str
    endpoints: Endpoints


def find_place(project: str | None) -> Place:
    """The place that the option, the environment, ``conf/`` here or the credentials name.

    Raises:
        ConfigError: none of them names a project.
    """
    from gce_backend.config import find_project, read_endpoints

    endpoints = read_endpoints()
    return Place(find_project(project or _configured_here(), endpoints), endpoints)


def _configured_here() -> str | None:
    """``gce.project`` of the MLproject in this directory, where it sets one."""
    file = Path("conf/gce/default.yaml")
    if not file.is_file():
        return None
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = OmegaConf.select(OmegaConf.load(file), "project")
    except (OmegaConfBaseException, OSError):
        return None  # whoever composes this configuration will say what is wrong with it
    return str(found) if found else None
