"""What an entry point's Python must have: read from the project, written into the run's spec.

The agent on the instance decides whether the image already has it all; where it has not, ``uv``
builds the environment, and the wheel that holds ``uv`` comes from the bucket.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gce_backend.errors import ConfigError, ProjectError

UV_VERSION = "0.13.9"
# The presets are all x86-64; stock images have glibc 2.28 or newer.
_UV_PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Environment:
    """A Python environment to have on the instance.

    Args:
        manager: "uv" builds one where the image's Python lacks something; "local" never does.
        python: the version the project asks for, e.g. "3.12"; None for any.
        requirements: PEP 508 lines, or pip options such as ``--pre``.
    """

    manager: str
    python: str | None = None
    requirements: list[str] = field(default_factory=list)
    build_dependencies: list[str] = field(default_factory=list)

    @property
    def may_need_uv(self) -> bool:
        return self.manager == "uv" and bool(self.requirements)


def read_environment(directory: Path, manager: str | None) -> Environment:
    """The environment of the project in ``directory``.

    Args:
        manager: MLflow's ``--env-manager``; None means uv.

    Raises:
        ProjectError: an environment file cannot be read.
        ConfigError: the manager is none that an instance has.
    """
    from mlflow.projects.utils import load_project

    if manager == "local":
        return Environment("local")
    if manager not in (None, "uv", "virtualenv"):
        raise ConfigError(
            f"--env-manager {manager}: on an instance there are uv (default) and local"
        )
    project = load_project(str(directory))
    if project.env_config_path is None:
        # What MLflow itself gives a project that names nothing.
        return Environment("uv", requirements=[f"mlflow=={importlib.metadata.version('mlflow')}"])
    path = directory / project.env_config_path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ProjectError(f"{path}: cannot be read: {error}") from error
    if project.env_type == "conda_env":
        return _from_conda(path)
    return Environment(
        "uv",
        python=str(content["python"]) if "python" in content else None,
        requirements=_expanded(content.get("dependencies") or [], path.parent),
        build_dependencies=_expanded(content.get("build_dependencies") or [], path.parent),
    )


def download_uv(target: Path) -> Path:
    """Bring uv's wheel for the instances' platform, with this machine's pip and its settings.

    Raises:
        ConfigError: pip failed; its last words are in the message.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    platforms = [word for name in _UV_PLATFORMS for word in ("--platform", name)]
    uv = f"uv=={UV_VERSION}"
    with tempfile.TemporaryDirectory(dir=target) as directory:
        done = subprocess.run(
            [*pip, "--no-deps", "--only-binary=:all:", *platforms, "--dest", directory, uv],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(directory).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConfigError(
                f"cannot download uv {UV_VERSION}, which builds environments on instances: "
                f"{done.stderr.strip()[-800:]}\n"
                "Use --env-manager local if the image already has what the project needs"
            )
        return wheels[0].rename(target / wheels[0].name)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_conda(path: Path) -> Environment:
    from mlflow.utils.environment import _PythonEnv

    try:
        env = _PythonEnv.from_conda_yaml(str(path))
    except Exception as error:  # whatever the file made MLflow stumble over
        raise ProjectError(f"{path}: {error}") from error
    return Environment("uv", env.python, list(env.dependencies), list(env.build_dependencies))


def _expanded(lines: list[Any], directory: Path) -> list[str]:
    """Requirement lines with ``-r FILE`` replaced by that file's lines."""
    found: list[str] = []
    for line in map(str, lines):
        text = line.strip()
        if text.startswith(("-r ", "--requirement ")):
            file = directory / text.split(maxsplit=1)[1]
            try:
                nested = file.read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise ProjectError(f"requirements file {file}: {error.strerror}") from error
            found += _expanded(nested, file.parent)
        elif text and not text.startswith("#"):
            found.append(text.split(" #")[0].strip())
    return found
