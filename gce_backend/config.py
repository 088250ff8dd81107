"""What a run is to be, composed by Hydra from ``conf/`` and held against a schema.

The only reader of the environment and of MLflow's ``backend_config``. Not here: what an MLproject
declares (``project.py``), and whether the cloud agrees (``compute.py``, ``storage.py``).
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gce_backend.compose import Composer, choices, dotted_keys, first_line
from gce_backend.errors import ConfigError
from gce_backend.storage_errors import check_bucket_name
from gce_backend.urls import is_address, is_loopback

# The keys MLflow itself puts into a backend's configuration; none of them is ours.
_MLFLOW_KEYS = frozenset(
    {"ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR", "build_image", "docker_auth"}
)
_SECRET = r"projects/[a-z0-9:.-]+/secrets/[\w-]{1,255}(/versions/[\w-]+)?"
_ZONE = r"[a-z]+(-[a-z0-9]+)*-[a-z0-9]+"
_PROJECT = r"([a-z0-9.-]+:)?[a-z0-9-]+"  # those of a domain begin with it
_REASON = 300  # characters; Hydra goes on with its search path
_LEAST_DISK_GB = 10
_NO_CLOUD = """{what} is configured. Two ways out:
  the real cloud:  {remedy}, and `gcloud auth application-default login`
  the emulator:    mlflow-gce emulator exec -- mlflow run . --backend gce   (no account, no cost)"""


@dataclass
class Machine:
    """The instance to ask for: the schema of ``conf/machine/*.yaml``.

    Attributes:
        image: an image or image family, ``projects/P/global/images[/family]/NAME``.
        gpus: how many GPUs a running instance has, attached or part of the type.
        accelerator_type: only where GPUs are attached to the type (N1); ``gpus`` is their number.
        zones: every zone that offers this machine, best first.
    """

    name: str
    machine_type: str
    image: str
    zones: list[str]
    spot: bool = False
    disk_gb: int = 50
    disk_type: str = "pd-balanced"
    gpus: int = 0
    accelerator_type: str | None = None


class StallAction(enum.Enum):
    """What is done about a trainer that shows no life any more."""

    report = "report"
    end = "end"


@dataclass
class Results:
    """``require``: artifact paths that a successful run must have left in the bucket."""

    require: list[str] = field(default_factory=list)


class TrackingForward(enum.Enum):
    """Whether the instance itself may bring what is logged to the tracking server."""

    auto = "auto"
    never = "never"


@dataclass
class TrackingAccess:
    """How the instance may reach the tracking server: ``docs/tracking.md``.

    ``token_secret`` and ``login_secret`` (it holds ``user:password``) are names in Secret Manager.
    """

    forward: TrackingForward = TrackingForward.auto
    token_secret: str | None = None
    login_secret: str | None = None


class Via(enum.Enum):
    """How SSH reaches an instance."""

    external = "external"
    internal = "internal"
    iap = "iap"
    none = "none"


@dataclass
class Ssh:
    """``via``: null is external where the instance has an external address, none elsewhere."""

    via: Via | None = None


@dataclass
class Gce:
    """Where runs go, and their limits: the schema of the ``gce`` node (comments in its file)."""

    project: str | None
    bucket: str | None
    prefix: str
    zones: list[str] | None
    network: str
    subnetwork: str | None
    external_ip: bool
    service_account: str
    scopes: list[str]
    max_hours: float
    rescue_minutes: float
    boot_minutes: float
    grace_seconds: float
    follow: bool
    torch_backend: str | None
    max_attempts: int = 5
    max_cost_usd: float | None = None
    system_metrics: float = 10.0
    stall_minutes: float = 30.0
    stall_action: StallAction = StallAction.report
    max_parallel: int | None = None
    results: Results = field(default_factory=Results)
    ssh: Ssh = field(default_factory=Ssh)

    @property
    def ssh_via(self) -> str:
        """How SSH reaches the instance: external, internal, iap, or none."""
        if self.ssh.via is None:
            return "external" if self.external_ip else "none"
        return self.ssh.via.value

    tracking: TrackingAccess = field(default_factory=TrackingAccess)


@dataclass(frozen=True)
class Endpoints:
    """Where the APIs are: None stands for Google's own addresses."""

    compute: str | None = None
    storage: str | None = None

    @property
    def emulated(self) -> bool:
        return self.compute is not None


@dataclass(frozen=True)
class Settings:
    """A validated configuration: nothing below this module asks whether a value is set.

    Attributes:
        machine, zones: the machine asked for first, and where.
        others: the machines to ask for after it, in order, when every zone is out of it.
    """

    machine: Machine
    gce: Gce
    endpoints: Endpoints
    zones: tuple[str, ...]
    project: str
    bucket: str
    others: tuple[Machine, ...] = ()

    @property
    def choices(self) -> list[Settings]:
        """These settings once for each machine, in the order in which they are asked for."""
        return [
            dataclasses.replace(self, machine=each, zones=usable_zones(each, self.gce), others=())
            for each in (self.machine, *self.others)
        ]


def load_settings(
    project_dir: Path,
    *,
    backend_config: Mapping[str, Any] | None = None,
    parameters: Mapping[str, str] | None = None,
    training_words: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Compose and validate everything that a run in ``project_dir`` needs.

    Args:
        backend_config: MLflow's ``--backend-config``, a map of Hydra overrides.
        parameters: the ``machine`` and ``gce`` parameters among ``-P key=value``.
        training_words: the Hydra overrides the entry point will get; only checked, so that a
            misspelt key fails here and not on an instance that bills.

    Raises:
        ConfigError: with the key, its value, what is allowed, and the closest match.
    """
    endpoints = read_endpoints(environ)
    words = [*_backend_config_words(backend_config or {}), *_words(parameters or {})]
    composer = _composer(project_dir)
    first, *others = [
        settings_of(composer.compose(each), endpoints)
        for each in _one_machine_each([*words, *training_words])
    ]
    composer.check_types(training_words)
    return dataclasses.replace(first, others=tuple(each.machine for each in others))


def settings_of(config: DictConfig, endpoints: Endpoints) -> Settings:
    """Validate the nodes ``machine`` and ``gce`` of a composed ``config``.

    Raises:
        ConfigError: with the key, its value, what is allowed, and the closest match.
    """
    machine: Machine = _typed(config, "machine", Machine)
    gce: Gce = _typed(config, "gce", Gce)
    _check_names(machine, gce)
    _check_limits(gce)
    _check_secrets(gce.tracking)
    return Settings(
        machine=machine,
        gce=gce,
        endpoints=endpoints,
        zones=usable_zones(machine, gce),
        project=find_project(gce.project, endpoints),
        bucket=_bucket(gce),
    )


def is_backend_parameter(name: str) -> bool:
    """Whether ``-P name=…`` is this backend's own rather than the entry point's."""
    return name == "machine" or name.startswith(("machine.", "gce."))


def read_endpoints(environ: Mapping[str, str] = os.environ) -> Endpoints:
    """Where the environment says the APIs are, in the names the ecosystem uses.

    Raises:
        ConfigError: one is no URL, a token would travel over plain http, or only one API is
            emulated.
    """
    compute = environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE") or None
    storage = environ.get("STORAGE_EMULATOR_HOST") or None
    for name, url in (
        ("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", compute),
        ("STORAGE_EMULATOR_HOST", storage),
    ):
        if url and not is_address(url):
            raise ConfigError(f"{name}={url}: it must be a URL, as in http://127.0.0.1:9000")
        if url and url.startswith("http://") and not is_loopback(url):
            raise ConfigError(
                f"{name}={url}: plain http to an address that is not loopback would send your "
                "token in the clear. Use https, or an address of 127.0.0.0/8"
            )
    if (compute is None) != (storage is None) and is_loopback(compute or storage or ""):
        raise ConfigError(
            "one of Compute Engine and Cloud Storage is emulated and the other is not "
            f"(CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE={compute}, STORAGE_EMULATOR_HOST={storage})"
            ". Set both, as `mlflow-gce emulator env` prints them, or neither"
        )
    return Endpoints(compute, storage)


def _composer(project_dir: Path) -> Composer:
    """Raises ConfigError where the project's own configuration composes by no words at all."""
    try:
        return Composer(project_dir)
    except Exception as error:  # Hydra's, OmegaConf's and the parser's have no common base
        reason = " ".join(str(error).split())[:_REASON]
        raise ConfigError(f"{project_dir}/conf/config.yaml does not compose: {reason}") from error


def _words(parameters: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_hydra_value(value)}" for key, value in parameters.items()]


def _one_machine_each(words: list[str]) -> list[list[str]]:
    """The overrides once for each machine of ``machine=[l4,t4]``, an ordered list of presets.

    Hydra itself would compose the presets of such a list into one.
    """
    chosen = [word for word in words if word.startswith("machine=")]
    if chosen and re.fullmatch(r"machine=[^\[\]]+,[^\[\]]+", chosen[-1]):
        name = chosen[-1].partition("=")[2]
        raise ConfigError(f"machine={name}: machines that are tried in turn: machine=[{name}]")
    if not any(re.fullmatch(r"machine=\[.*\]", word) for word in chosen):
        return [words]
    rest = [word for word in words if not word.startswith("machine=")]
    last = chosen[-1].partition("=")[2]
    names = [name for each in last.strip("[]").split(",") if (name := each.strip())]
    if not names:
        raise ConfigError(f"{chosen[-1]}: the list names no machine")
    return [[f"machine={name}", *rest] for name in names]


def _hydra_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_hydra_value(item) for item in value)}]"
    return str(value)


def _backend_config_words(backend_config: Mapping[str, Any]) -> list[str]:
    ours = {key: value for key, value in backend_config.items() if key not in _MLFLOW_KEYS}
    flat = dict(_flat(ours))
    for key in flat:
        if not is_backend_parameter(key):
            known = ["machine", *dotted_keys(Composer(Path(os.devnull)).compose([]))]
            allowed = [each for each in known if is_backend_parameter(each)]
            raise ConfigError(f"backend config: unknown key {key!r}. {choices(key, allowed)}")
    return _words(flat)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """``{"gce": {"max_hours": 2}}`` is understood as ``{"gce.max_hours": 2}``."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _typed(config: DictConfig, node: str, schema: type) -> Any:
    typed = OmegaConf.structured(schema)
    known = [f"{node}.{key}" for key in dotted_keys(typed)]
    _check_groups(config, known)
    try:
        return OmegaConf.to_object(OmegaConf.merge(typed, config[node]))
    except OmegaConfBaseException as error:
        key = f"{node}.{error.full_key or error.key}"
        if "is not a ListConfig" in str(error):
            value = OmegaConf.select(config, key)
            raise ConfigError(f"{key}={value}: it is a list; write {key}=[{value}]") from error
        hint = "" if key in known else f" {choices(key, known)}"
        raise ConfigError(f"{key}: {first_line(error)}.{hint}") from error


def _check_groups(config: DictConfig, known: Sequence[str]) -> None:
    """A value where the schema has a group: OmegaConf would not say of which key it speaks."""
    for group in {key.rpartition(".")[0] for key in known}:
        value = OmegaConf.select(config, group, default=None)
        if value is not None and not isinstance(value, DictConfig):
            below = [key for key in known if key.startswith(f"{group}.")]
            raise ConfigError(f"{group}={value}: it takes no value itself. {choices('', below)}")


def _check_names(machine: Machine, gce: Gce) -> None:
    """What becomes part of names and addresses in the cloud."""
    if not re.fullmatch(r"[^/]+(/[^/]+)*", gce.prefix):
        raise ConfigError(
            f"gce.prefix={gce.prefix}: a folder in the bucket, as in mlflow-gce or team/mlflow, "
            "without a slash at its beginning or end and without empty parts"
        )
    for key in ("name", "machine_type", "image", "disk_type"):
        if not getattr(machine, key):
            raise ConfigError(f"machine.{key}: it must not be empty")
    if gce.project:
        check_project(gce.project)
    for zone in machine.zones or [""]:
        if not re.fullmatch(_ZONE, str(zone)):
            raise ConfigError(
                f"machine.zones={machine.zones}: {str(zone)!r} is no zone; every zone that offers "
                f"{machine.machine_type} must stand there, as in [europe-west1-b]"
            )
    if machine.disk_gb < _LEAST_DISK_GB:
        raise ConfigError(
            f"machine.disk_gb={machine.disk_gb}: a boot disk has at least {_LEAST_DISK_GB} GB, and "
            "no fewer than its image takes"
        )
    if machine.gpus < 0:
        raise ConfigError(f"machine.gpus={machine.gpus}: must not be negative")


def _check_limits(gce: Gce) -> None:
    for item in dataclasses.fields(gce):
        value = getattr(gce, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"gce.{item.name}={value}: a number that is finite is needed")
    most = 120 * 24  # maxRunDuration allows 120 days
    if gce.max_hours <= 0 or gce.max_hours + gce.rescue_minutes / 60 > most:
        raise ConfigError(
            f"gce.max_hours={gce.max_hours}: with gce.rescue_minutes it must be between 0 and "
            f"{most} hours, what Compute Engine allows an instance with a deadline"
        )
    if gce.max_attempts < 1:
        raise ConfigError(f"gce.max_attempts={gce.max_attempts}: a run takes at least one")
    if gce.max_parallel is not None and gce.max_parallel < 1:
        raise ConfigError(
            f"gce.max_parallel={gce.max_parallel}: must be at least 1, or null for no limit"
        )
    if gce.max_cost_usd is not None and gce.max_cost_usd <= 0:
        raise ConfigError(f"gce.max_cost_usd={gce.max_cost_usd}: must be above 0, or null for none")
    if gce.boot_minutes <= 0:
        raise ConfigError(f"gce.boot_minutes={gce.boot_minutes}: must be above 0")
    for key in ("rescue_minutes", "grace_seconds", "system_metrics", "stall_minutes"):
        if getattr(gce, key) < 0:
            raise ConfigError(f"gce.{key}={getattr(gce, key)}: must not be negative")


def _check_secrets(tracking: TrackingAccess) -> None:
    given = {
        key: value
        for key in ("token_secret", "login_secret")
        if (value := getattr(tracking, key)) is not None
    }
    for key, value in given.items():
        if not re.fullmatch(_SECRET, value):
            raise ConfigError(
                f"gce.tracking.{key} must be the name of a secret in Secret Manager, not the "
                "secret itself: projects/PROJECT/secrets/NAME, or …/versions/VERSION behind it"
            )
    if len(given) > 1:
        raise ConfigError("gce.tracking: set token_secret or login_secret, not both")


def check_project(project: str) -> None:
    """Raises ConfigError for what cannot be the id of a project."""
    if not re.fullmatch(_PROJECT, project):
        raise ConfigError(
            f"gce.project={project}: no project can have this id; it is made of lower-case "
            "letters, digits and '-'. See: gcloud projects list"
        )


def usable_zones(machine: Machine, gce: Gce) -> tuple[str, ...]:
    """The zones to ask for ``machine`` in, best first.

    Raises:
        ConfigError: it is not offered where ``gce.zones`` says.
    """
    if gce.zones is None:
        return tuple(machine.zones)
    wrong = [zone for zone in gce.zones if zone not in machine.zones]
    if wrong or not gce.zones:
        raise ConfigError(
            f"gce.zones={gce.zones}: machine {machine.name!r} ({machine.machine_type}) is not "
            f"offered in {', '.join(map(str, wrong)) or 'an empty list'}. "
            f"{choices(str((wrong or [''])[0]), machine.zones)}. "
            "If the preset is out of date, set machine.zones"
        )
    return tuple(gce.zones)


def find_project(configured: str | None, endpoints: Endpoints) -> str:
    """``configured``, else the project of the application default credentials.

    Raises:
        ConfigError: neither names one.
    """
    if configured:
        return configured
    if not endpoints.emulated:
        import google.auth
        import google.auth.exceptions

        try:
            if project := google.auth.default()[1]:
                return str(project)
        except google.auth.exceptions.DefaultCredentialsError:
            pass
    remedy = "-P gce.project=PROJECT (or GOOGLE_CLOUD_PROJECT=PROJECT)"
    raise ConfigError(_NO_CLOUD.format(what="no Google Cloud project", remedy=remedy))


def _bucket(gce: Gce) -> str:
    if not gce.bucket:
        remedy = "-P gce.bucket=BUCKET (or MLFLOW_GCE_BUCKET=BUCKET)"
        raise ConfigError(_NO_CLOUD.format(what="no bucket", remedy=remedy))
    if "/" in gce.bucket:
        raise ConfigError(
            f"gce.bucket={gce.bucket}: only the bucket's name, without gs:// or a folder "
            "(the folder is gce.prefix)"
        )
    check_bucket_name(gce.bucket, "gce.bucket=")
    return gce.bucket
