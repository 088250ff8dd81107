"""Asking for the instance of one attempt: zone after zone, and none left behind on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gce_backend.agent.paths import RunPaths
from gce_backend.compute import Compute
from gce_backend.config import Settings
from gce_backend.console import Console
from gce_backend.errors import (
    CleanupError,
    ComputeError,
    GceBackendError,
    NoCapacity,
    PermissionDenied,
    QuotaExceeded,
)
from gce_backend.instance import Agent, insert_body, instance_name, lifetime_seconds
from gce_backend.interrupts import Interrupts
from gce_backend.prices import price
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

ATTEMPT = 1  # a further attempt, after a preemption, would be the next

# The label a reaper goes by counts from the submit, the instance's own run time from RUNNING.
_BOOT_SLACK_SECONDS = 900


class InstanceRequest:
    """Asks for the instance of one attempt, in zone after zone."""

    def __init__(
        self,
        settings: Settings,
        agent: Agent,
        paths: RunPaths,
        tracking: Tracking,
        console: Console,
        interrupts: Interrupts,
    ) -> None:
        self._settings = settings
        self._agent = agent
        self._paths = paths
        self._tracking = tracking
        self._console = console
        self._interrupts = interrupts
        self._compute = Compute(settings.project, endpoint=settings.endpoints.compute)

    def in_first_zone_with_room(self) -> Submission:
        """Create the instance; zones without room or quota are passed over."""
        refused: list[GceBackendError] = []
        for zone in self._settings.zones:
            if _is_pointless(zone, refused):
                continue
            try:
                return self._in(zone)
            except (NoCapacity, QuotaExceeded) as error:
                self._console.warn(f"{error}; trying the next zone")
                refused.append(error)
                if isinstance(error, QuotaExceeded) and error.is_global:
                    break
        raise _nowhere(self._settings, refused)

    def _in(self, zone: str) -> Submission:
        settings, run_id, now = self._settings, self._paths.run_id, time.time()
        submission = Submission(
            run_id=run_id,
            project=settings.project,
            zone=zone,
            instance=instance_name(run_id, ATTEMPT),
            bucket=settings.bucket,
            paths=self._paths,
            tracking_uri=self._tracking.uri,
            deadline=now + lifetime_seconds(settings) + _BOOT_SLACK_SECONDS,
            created_at=now,
            usd_per_hour=usd_per_hour(settings, zone),
        )
        # The intent is written down before the insert: whoever comes after a crash knows where
        # to look.
        self._tracking.set_tags(run_id, submission.tags())
        body = insert_body(
            settings,
            zone,
            run_id=run_id,
            attempt=ATTEMPT,
            spec_uri=f"gs://{settings.bucket}/{self._paths.spec}",
            agent=self._agent,
            deadline=submission.deadline,
            run_name=str(self._tracking.get_run(run_id).info.run_name),
        )
        # From here on there is something to detach from: signals leave a wish, also after this.
        self._interrupts.defer()
        try:
            with _deleted_on_error(self._compute, submission):
                self._compute.insert(zone, body)
        except BaseException:
            self._interrupts.defer(False)
            raise
        self._console.phase("created", time.time() - now, submission.resource)
        return submission


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
    except PermissionDenied:
        raise  # refused before anything was made; the delete would be refused as well
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
    except ComputeError as error:
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


def usd_per_hour(settings: Settings, zone: str) -> float | None:
    """List price of the settings' instance in ``zone``, None where the table does not know it."""
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
