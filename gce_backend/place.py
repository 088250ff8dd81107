"""Which Google Cloud project a command asks, and at which addresses."""

from __future__ import annotations

import os
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
    project = project or os.environ.get("GOOGLE_CLOUD_PROJECT") or configured_here("project")
    return Place(find_project(project, endpoints), endpoints)


def configured_here(key: str, directory: Path = Path()) -> str | None:
    """A key of ``gce`` of the MLproject in the directory, where it sets one."""
    file = directory / "conf/gce/default.yaml"
    if not file.is_file():
        return None
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = OmegaConf.select(OmegaConf.load(file), key)
    except (OmegaConfBaseException, OSError):
        return None  # whoever composes this configuration will say what is wrong with it
    return str(found) if found else None
