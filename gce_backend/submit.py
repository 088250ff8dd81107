"""From an order to an instance: validate, ship, ask for the instance in zone after zone.

After ``submit`` nothing depends on this process: the agent on the instance works by itself, and
Compute Engine deletes the instance at its deadline. What follows is in ``runner.py``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.bundle import make_bundle, size_warning
from gce_backend.compute import Compute
from gce_backend.config import Settings, is_backend_parameter, load_settings
from gce_backend.console import Console
from gce_backend.environment import Environment, read_environment
from gce_backend.errors import (
    CleanupError,
    ComputeError,
    GceBackendError,
    NoCapacity,
    OperationTimeout,
    QuotaExceeded,
)
from gce_backend.instance import insert_body, instance_name, lifetime_seconds
from gce_backend.interrupts import Interrupted, Interrupts
from gce_backend.lifecycle import EndReason
from gce_backend.prices import PRICE_DATE, price
from gce_backend.project import EntryPoint, Source, entry_point, open_source
from gce_backend.shipment import Shipment, run_spec, ship
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.tracking import Experiment, Tracking

# The label a reaper goes by counts from the submit, the instance's own run time from RUNNING.
_BOOT_SLACK_SECONDS = 900


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
        plan = _plan(order, source)
        storage = Storage(plan.settings.bucket, project=plan.settings.project)
        storage.check(plan.settings.gce.prefix)
        tracking = Tracking(order.tracking_uri)
        experiment = tracking.choose_experiment(
            order.experiment_id,
            project_name=_project_name(source),
            settings=plan.settings,
        )
        if experiment.notice:
            console.say(experiment.notice)
        shipment = _ship(plan, storage, Path(scratch), console, started)
        run_id = tracking.create_run(
            experiment,
            source,
            plan.entry,
            settings=plan.settings,
            backend_parameters=plan.backend_parameters,
            run_name=order.run_name,
        )
        with _terminated_on_error(tracking, run_id):
            return _request_instance(
                plan, shipment, storage, tracking, experiment, run_id, console, interrupts
            ), plan.settings


def _plan(order: Order, source: Source) -> Plan:
    ours = {k: str(v) for k, v in order.parameters.items() if is_backend_parameter(k)}
    theirs = {k: v for k, v in order.parameters.items() if not is_backend_parameter(k)}
    entry = entry_point(source, order.entry_point, theirs)
    settings = load_settings(
        source.directory,
        backend_config=order.backend_config,
        parameters={k: v for k, v in order.parameters.items() if is_backend_parameter(k)},
        training_words=entry.hydra_words,
    )
    environment = read_environment(source.directory, order.env_manager)
    return Plan(order, source, entry, settings, environment, ours)


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
        f"{' (spot)' if machine.spot else ''}, {_price_line(plan.settings, plan.settings.zones[0])}"
    )
    size = f"{len(bundle.files)} files, {bundle.size / 1e6:.2f} MB in gs://{storage.bucket}"
    console.phase("shipped", time.monotonic() - started, size)
    return shipment


def _price_line(settings: Settings, zone: str) -> str:
    known = _price(settings, zone)
    if known is None:
        return "price unknown"
    hours = lifetime_seconds(settings) / 3600
    return (
        f"about ${known:.3f}/h (list price, {PRICE_DATE}), at most ${known * hours:.2f} "
        f"in the {hours:g} h until its deadline"
    )


def _price(settings: Settings, zone: str) -> float | None:
    machine = settings.machine
    known = price(
        machine.machine_type,
        zone,
        spot=machine.spot,
        disk_type=machine.disk_type,
        disk_gb=machine.disk_gb,
        accelerator_type=machine.accelerator_type,
        accelerators=machine.gpus,
        external_ip=settings.gce.external_ip,
    )
    return known.usd_per_hour if known else None


@contextmanager
def _terminated_on_error(tracking: Tracking, run_id: str) -> Iterator[None]:
    """The MLflow run does not stay RUNNING when no instance came of it."""
    try:
        yield
    except BaseException as error:
        reason = EndReason.SUBMIT_FAILED
        if isinstance(error, NoCapacity):
            reason = EndReason.NO_CAPACITY
        elif isinstance(error, QuotaExceeded):
            reason = EndReason.QUOTA_EXCEEDED
        elif isinstance(error, ComputeError):
            reason = EndReason.REFUSED
        elif isinstance(error, (KeyboardInterrupt, Interrupted)):
            reason = EndReason.CANCELLED
        tracking.terminate(run_id, reason)
        raise


def _request_instance(
    plan: Plan,
    shipment: Shipment,
    storage: Storage,
    tracking: Tracking,
    experiment: Experiment,
    run_id: str,
    console: Console,
    interrupts: Interrupts,
) -> Submission:
    """Write the spec, then create the instance in the first zone that has room for it."""
    settings, attempt = plan.settings, 1
    paths = RunPaths(settings.gce.prefix, run_id)
    now = time.time()
    spec = run_spec(
        settings=settings,
        shipment=shipment,
        entry=plan.entry,
        environment=plan.environment,
        tracking=tracking.spec(experiment, run_id),
        run_id=run_id,
        attempt=attempt,
        deadline=now + settings.gce.max_hours * 3600,
    )
    storage.put_json(paths.spec, spec)
    compute = Compute(settings.project, endpoint=settings.endpoints.compute)
    deadline = now + lifetime_seconds(settings) + _BOOT_SLACK_SECONDS
    refused: list[GceBackendError] = []
    for zone in settings.zones:
        if _is_pointless(zone, refused):
            continue
        submission = Submission(
            run_id=run_id,
            project=settings.project,
            zone=zone,
            instance=instance_name(run_id, attempt),
            bucket=settings.bucket,
            paths=paths,
            tracking_uri=plan.order.tracking_uri,
            deadline=deadline,
            created_at=time.time(),
            usd_per_hour=_price(settings, zone),
        )
        # The intent is written down before the insert: whoever comes after a crash knows where
        # to look.
        tracking.set_tags(run_id, submission.tags())
        body = insert_body(
            settings,
            zone,
            run_id=run_id,
            attempt=attempt,
            spec_uri=storage.uri(paths.spec),
            agent=shipment.agent,
            deadline=deadline,
        )
        try:
            with interrupts.deferred(), _deleted_on_error(compute, submission):
                compute.insert(zone, body)
        except (NoCapacity, QuotaExceeded) as error:
            console.warn(f"{error}; trying the next zone")
            refused.append(error)
            if isinstance(error, QuotaExceeded) and error.is_global:
                break
            continue
        console.phase("created", time.time() - submission.created_at, submission.resource)
        return submission
    raise _nowhere(settings, refused)


def _is_pointless(zone: str, refused: list[GceBackendError]) -> bool:
    """A quota belongs to a region: its other zones would answer the same."""
    region = zone.rpartition("-")[0]
    return any(isinstance(e, QuotaExceeded) and region in str(e) for e in refused)


def _nowhere(settings: Settings, refused: list[GceBackendError]) -> GceBackendError:
    what = f"{settings.machine.machine_type}{' (spot)' if settings.machine.spot else ''}"
    lines = "\n".join(f"  {error}" for error in refused)
    quota = next((e for e in refused if isinstance(e, QuotaExceeded)), None)
    if quota is not None:
        region = settings.zones[0].rpartition("-")[0]
        return QuotaExceeded(
            f"no quota for {what}. No instance exists. What came back:\n{lines}\n"
            f"See: gcloud compute regions describe {region} --project {settings.project}",
            is_global=quota.is_global,
        )
    return NoCapacity(
        f"no zone has room for {what} now. No instance exists. What came back:\n{lines}\n"
        "Try again later, another machine (-P machine=…) or other zones (-P gce.zones=[…])"
    )


@contextmanager
def _deleted_on_error(compute: Compute, submission: Submission) -> Iterator[None]:
    """Whatever goes wrong while an instance is created, none is left behind.

    An insert whose reply got lost, or whose operation timed out, may still take effect.
    """
    try:
        yield
    except BaseException as error:
        delete(compute, submission, because=str(error))
        raise


def delete(compute: Compute, submission: Submission, *, because: str = "") -> None:
    """Delete the instance and return once it is proven to be gone.

    Raises:
        CleanupError: it may still exist and bill.
    """
    try:
        compute.delete(submission.zone, submission.instance)
    except (ComputeError, OperationTimeout) as error:
        deadline = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(submission.deadline))
        raise CleanupError(
            f"{f'{because}. ' if because else ''}cannot delete instance "
            f"{submission.instance!r} in {submission.zone}: {error}. It may still be billing, "
            f"until {deadline} at the latest, when Compute Engine deletes it. Run:\n"
            f"  gcloud compute instances delete {submission.instance} --zone {submission.zone} "
            f"--project {submission.project}",
            instance=submission.instance,
            zone=submission.zone,
        ) from error
