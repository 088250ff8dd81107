"""From an order to an instance: validate, ship, ask for the instance in zone after zone.

After ``submit`` nothing depends on this process: the agent on the instance works by itself, and
Compute Engine deletes the instance at its deadline. What follows is in ``runner.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.blueprint import Blueprint
from gce_backend.budget import usd_per_hour, within_cost
from gce_backend.bundle import make_bundle, size_warning
from gce_backend.config import Settings, is_backend_parameter, load_settings
from gce_backend.console import Console
from gce_backend.environment import Environment, read_environment
from gce_backend.errors import (
    CleanupError,
    ComputeError,
    NoCapacity,
    QuotaExceeded,
    StorageError,
    TrackingError,
)
from gce_backend.forwarding import forward_target, permitted
from gce_backend.instance import lifetime_seconds
from gce_backend.interrupts import Interrupted, Interrupts
from gce_backend.lifecycle import EndReason
from gce_backend.prices import price_date
from gce_backend.project import EntryPoint, Source, entry_point, open_source
from gce_backend.request import ATTEMPT, InstanceRequest
from gce_backend.shipment import Shipment, run_spec, ship
from gce_backend.storage import Storage, parse_uri
from gce_backend.submission import Submission
from gce_backend.tracking import MAY_BILL_TAG, Tracking
from gce_backend.working_tree import diff


@dataclass(frozen=True)
class Order:
    """What the user asked for, as MLflow hands it over.

    Args:
        parameters: ``-P key=value``, the entry point's and the backend's together.
        backend_config: MLflow's map, its own injected keys included.
        env_manager: MLflow's ``--env-manager``, None when not given.
    """

    uri: str
    entry_point: str
    tracking_uri: str
    experiment_id: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    backend_config: Mapping[str, Any] = field(default_factory=dict)
    run_name: str | None = None
    env_manager: str | None = None


@dataclass(frozen=True)
class Plan:
    """An order that was found possible; nothing has been created yet."""

    order: Order
    source: Source
    entry: EntryPoint
    settings: Settings
    environment: Environment
    backend_parameters: dict[str, str]
    forward: dict[str, Any] | None


def submit(order: Order, console: Console, interrupts: Interrupts) -> tuple[Submission, Settings]:
    """Validate ``order``, put everything into the bucket, and create the run's instance.

    Raises:
        GceBackendError: nothing bills; an MLflow run that had been created is terminated.
        CleanupError: an instance may bill all the same; the message says which.
    """
    started = time.monotonic()
    with (
        open_source(order.uri, order.version) as source,
        tempfile.TemporaryDirectory(prefix="mlflow-gce-") as scratch,
    ):
        plan = examine(order, source)
        settings = plan.settings
        storage = Storage(settings.bucket, project=settings.project)
        check_bucket(storage, settings.gce.prefix)
        tracking = Tracking(order.tracking_uri)
        experiment = tracking.choose_experiment(
            order.experiment_id, project_name=_project_name(source), settings=settings
        )
        if experiment.notice:
            console.say(experiment.notice)
        if plan.forward:
            console.say(f"the instance itself brings what is logged to {order.tracking_uri}")
        shipment = _ship(plan, storage, Path(scratch), console, started)
        run_id = tracking.create_run(
            experiment,
            source,
            plan.entry,
            settings=settings,
            backend_parameters=plan.backend_parameters,
            run_name=order.run_name,
        )
        with _terminated_on_error(tracking, run_id):
            paths = RunPaths(settings.gce.prefix, run_id)
            spec = run_spec(
                settings=settings,
                shipment=shipment,
                entry=plan.entry,
                environment=plan.environment,
                tracking={**tracking.spec(experiment, run_id), "forward": plan.forward},
                run_id=run_id,
                attempt=ATTEMPT,
                deadline=time.time() + settings.gce.max_hours * 3600,
            )
            storage.put_json(paths.spec, spec)
            _keep_diff(source, shipment, storage, spec["tracking"]["run"]["info"]["artifact_uri"])
            Blueprint(settings, shipment.agent).save(storage, paths)
            request = InstanceRequest(
                settings, shipment.agent, paths, tracking, console, interrupts, storage=storage
            )
            return request.in_first_zone_with_room(), settings


def check_bucket(storage: Storage, prefix: str) -> None:
    """Prove that the bucket can be used, before anything exists.

    Raises:
        StorageError: it cannot; nothing was started.
    """
    try:
        storage.check(prefix)
    except StorageError as error:
        told = StorageError(f"nothing was started: {error}")
        told.transient = error.transient
        raise told from error


def examine(order: Order, source: Source) -> Plan:
    """What ``order`` comes to; asks no API and creates nothing.

    Raises:
        ProjectError: the project has no such entry point, or not with these parameters.
        ConfigError: the configuration is wrong, the training's own included.
    """
    ours = {k: v for k, v in order.parameters.items() if is_backend_parameter(k)}
    theirs = {k: v for k, v in order.parameters.items() if k not in ours}
    entry = entry_point(source, order.entry_point, theirs)
    settings = within_cost(
        load_settings(
            source.directory,
            backend_config=order.backend_config,
            parameters=ours,
            training_words=entry.hydra_words,
        )
    )
    environment = read_environment(source.directory, order.env_manager)
    recorded = {key: str(value) for key, value in ours.items()}
    forward = forward_target(order.tracking_uri, settings)
    settings = permitted(settings, forward)
    return Plan(order, source, entry, settings, environment, recorded, forward)


def _project_name(source: Source) -> str:
    from mlflow.projects.utils import load_project

    name = load_project(str(source.directory)).name
    return str(name or Path(source.name.rstrip("/").partition("#")[0]).name.removesuffix(".git"))


def _ship(
    plan: Plan, storage: Storage, scratch: Path, console: Console, started: float
) -> Shipment:
    machine, gce = plan.settings.machine, plan.settings.gce
    bundle = make_bundle(plan.source.directory, scratch / "bundle.tar.gz")
    if warning := size_warning(bundle):
        console.warn(warning)
    for secret in bundle.excluded_secrets:
        console.warn(f"{secret} looks like a secret and stays here; commit it to git to ship it")
    shipment = ship(storage, bundle, plan.environment, prefix=gce.prefix, scratch=scratch)
    console.say(
        f"{plan.entry.name} of {plan.source.name} on {machine.name}"
        f"{' (spot)' if machine.spot else ''}, {_price_line(plan.settings)}"
    )
    size = f"{len(bundle.files)} files, {bundle.size / 1e6:.2f} MB in gs://{storage.bucket}"
    console.phase("shipped", time.monotonic() - started, size)
    return shipment


def _keep_diff(source: Source, shipment: Shipment, storage: Storage, artifact_uri: str) -> None:
    """What the commit does not tell of a dirty working tree, as the artifact ``git.diff``."""
    shipped = {name for name, _ in shipment.bundle.files}
    if source.dirty and (changes := diff(source.directory, shipped)):
        bucket, root = parse_uri(artifact_uri)
        storage.in_bucket(bucket).put(f"{root}/git.diff", changes, content_type="text/x-diff")


def _price_line(settings: Settings) -> str:
    """What the instance costs where it is asked for first, and at most, wherever it comes to be."""
    machine, zone = settings.machine, settings.zones[0]
    everywhere = [usd_per_hour(each, where) for each in settings.choices for where in each.zones]
    known = [usd for usd in everywhere if usd is not None]
    here = usd_per_hour(settings, zone)
    if here is None or len(known) < len(everywhere):
        return f"asked for in {zone} first; its price is not known in every zone"
    flipped = dataclasses.replace(machine, spot=not machine.spot)
    other = usd_per_hour(dataclasses.replace(settings, machine=flipped), zone)
    hours = lifetime_seconds(settings) / 3600
    otherwise = "on demand" if machine.spot else "spot"
    return (
        f"about ${here:.3f}/h in {zone} ({otherwise}: ${other:.3f}/h), "
        f"at most ${max(known) * hours:.2f} in the {hours:.3g} h until its deadline in any of "
        f"{len(everywhere)} zones (estimates: list prices of {price_date()})"
    )


#: Why an MLflow run ends that no instance came of; the first match counts.
_REASONS: list[tuple[type[BaseException], EndReason]] = [
    (NoCapacity, EndReason.NO_CAPACITY),
    (QuotaExceeded, EndReason.QUOTA_EXCEEDED),
    (ComputeError, EndReason.REFUSED),
    (Interrupted, EndReason.CANCELLED),
    (KeyboardInterrupt, EndReason.CANCELLED),
    (BaseException, EndReason.SUBMIT_FAILED),
]


@contextmanager
def _terminated_on_error(tracking: Tracking, run_id: str) -> Iterator[None]:
    """The MLflow run does not stay RUNNING when no instance came of it."""
    try:
        yield
    except BaseException as error:
        reason = next(r for kind, r in _REASONS if isinstance(error, kind))
        if reason is EndReason.REFUSED and getattr(error, "transient", False):
            reason = EndReason.SUBMIT_FAILED  # no answer is no refusal
        with contextlib.suppress(TrackingError):  # the first error is the one to tell
            if isinstance(error, CleanupError):
                tracking.set_tags(run_id, {MAY_BILL_TAG: error.instance})
            tracking.terminate(run_id, reason)
        raise
