"""``spec.json``: what the client asks of this attempt, parsed once at the door."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .errors import AgentError
from .paths import RunPaths

VERSION = 1


@dataclass(frozen=True)
class Stored:
    """An object that the spec names together with its checksum."""

    object: str
    sha256: str


@dataclass(frozen=True)
class Environment:
    manager: str  # "uv" or "local"
    python: str | None
    requirements: tuple[str, ...]
    build_dependencies: tuple[str, ...]
    uv: Stored | None
    torch_backend: str | None


@dataclass(frozen=True)
class Forward:
    """The tracking server that the agent itself may write to."""

    uri: str
    secret: str | None  # projects/P/secrets/NAME/versions/VERSION
    secret_kind: str  # "token", or "login" for user:password


@dataclass(frozen=True)
class Spec:
    run_id: str
    attempt: int
    bucket: str
    paths: RunPaths
    bundle: Stored
    workdir: str
    place: str  # absolute path at which the project should be found; "" for anywhere
    job: Stored | None  # a program of the client's, fetched beside the project
    command: str
    env: dict[str, str]
    environment: Environment
    experiment: dict[str, Any]  # as REST experiments/get gives it
    run: dict[str, Any]  # as REST runs/get gives it
    deadline: float  # unix seconds
    grace_seconds: float
    require: tuple[str, ...]
    system_metrics_seconds: float  # 0: the agent logs none
    stall_minutes: float  # 0: nobody asks whether the trainer still lives
    stall_end: bool
    forward: Forward | None  # None: the journal is applied by a client alone

    @property
    def artifact_uri(self) -> str:
        return str(self.run["info"]["artifact_uri"])

    @property
    def experiment_location(self) -> str:
        return str(self.experiment["artifact_location"]).rstrip("/")


def parse_spec(data: bytes) -> Spec:
    """Parse the client's ``spec.json``. Raises AgentError that names what is wrong."""
    try:
        raw = json.loads(data)
        if raw["version"] != VERSION:
            raise AgentError(f"spec.json has version {raw['version']}; this agent reads {VERSION}")
        spec = _spec(raw)
    except (ValueError, KeyError, TypeError) as error:
        raise AgentError(f"spec.json cannot be read: {type(error).__name__}: {error}") from error
    for name in (spec.experiment_location, spec.artifact_uri):
        if not name.startswith("gs://"):
            raise AgentError(f"the artifact location '{name}' is not in Cloud Storage (gs://…)")
    return spec


def _spec(raw: dict[str, Any]) -> Spec:
    return Spec(
        run_id=str(raw["run_id"]),
        attempt=int(raw["attempt"]),
        bucket=str(raw["bucket"]),
        paths=RunPaths(str(raw["prefix"]), str(raw["run_id"])),
        bundle=_stored(raw["bundle"]),
        workdir=str(raw.get("workdir") or ""),
        place=str(raw.get("place") or ""),
        job=_stored(raw["job"]) if raw.get("job") else None,
        command=str(raw["command"]),
        env={str(key): str(value) for key, value in (raw.get("env") or {}).items()},
        environment=_environment(raw.get("environment") or {}),
        experiment=dict(raw["tracking"]["experiment"]),
        run=dict(raw["tracking"]["run"]),
        deadline=float(raw["deadline"]),
        grace_seconds=float(raw.get("grace_seconds", 30)),
        require=tuple(str(path) for path in raw.get("require") or ()),
        system_metrics_seconds=float(raw.get("system_metrics_seconds") or 0),
        stall_minutes=float(raw.get("stall_minutes") or 0),
        stall_end=bool(raw.get("stall_end")),
        forward=_forward(raw["tracking"].get("forward")),
    )


def _environment(raw: dict[str, Any]) -> Environment:
    manager = str(raw.get("manager") or "local")
    if manager not in ("uv", "local"):
        raise AgentError(f"spec.json: environment manager '{manager}'; known are 'uv' and 'local'")
    return Environment(
        manager=manager,
        python=str(raw["python"]) if raw.get("python") else None,
        requirements=tuple(str(line) for line in raw.get("requirements") or ()),
        build_dependencies=tuple(str(line) for line in raw.get("build_dependencies") or ()),
        uv=_stored(raw["uv"]) if raw.get("uv") else None,
        torch_backend=str(raw["torch_backend"]) if raw.get("torch_backend") else None,
    )


def _forward(raw: dict[str, Any] | None) -> Forward | None:
    if not raw:
        return None
    secret = raw.get("secret") or {}
    return Forward(str(raw["uri"]), secret.get("name"), str(secret.get("kind") or "token"))


def _stored(raw: dict[str, Any]) -> Stored:
    return Stored(object=str(raw["object"]), sha256=str(raw["sha256"]))
