"""Asking for the instance of one attempt: zone after zone, machine after machine, none left behind.

::

    no capacity            next zone; after the last one the next machine of the list
    not offered there      the same
    an internal error      the same
    quota of a region      its other zones are passed over
    quota of all regions, permission, bad request     stop: no zone would answer otherwise
    no answer, no end      stop: delete by name, and let an instance that comes late end itself
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gce_backend.agent.paths import RunPaths
from gce_backend.budget import usd_per_hour
from gce_backend.claims import Claim, ClaimLost
from gce_backend.compute import Compute
from gce_backend.config import Settings
from gce_backend.console import Console
from gce_backend.errors import (
    AlreadyExists,
    CleanupError,
    ComputeError,
    GceBackendError,
    InternalError,
    NoCapacity,
    NotOffered,
    PermissionDenied,
    QuotaExceeded,
    SshError,
    StorageError,
)
from gce_backend.history import Event, History
from gce_backend.instance import Agent, insert_body, instance_name, lifetime_seconds
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import Phase
from gce_backend.presence import this_client
from gce_backend.ssh_state import SshState
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.tracking import Tracking

ATTEMPT = 1  # of a run that has just been made
GIVEN_UP = b"the insert was given up\n"

# The label a reaper goes by counts from the submit, the instance's own run time from RUNNING.
_BOOT_SLACK_SECONDS = 900

_NEXT_ZONE = (NoCapacity, InternalError, NotOffered, QuotaExceeded)


class InstanceRequest:
    """Asks for the instance of one attempt.

    Args:
        attempt: which one, from 1.
        avoid: a zone to ask last: the one that an earlier attempt was taken back in.
        storage: the run's bucket; opened when it is needed, if none is given.
        claim: of a further attempt, which another client may want to ask for as well.
    """

    def __init__(
        self,
        settings: Settings,
        agent: Agent,
        paths: RunPaths,
        tracking: Tracking,
        console: Console,
        interrupts: Interrupts,
        *,
        attempt: int = ATTEMPT,
        avoid: str = "",
        storage: Storage | None = None,
        claim: Claim | None = None,
    ) -> None:
        self._settings = settings
        self._agent = agent
        self._paths = paths
        self._tracking = tracking
        self._console = console
        self._interrupts = interrupts
        self._attempt = attempt
        self._avoid = avoid
        self._claim = claim
        self._storage = storage or Storage(settings.bucket, project=settings.project)
        self._compute = Compute(settings.project, endpoint=settings.endpoints.compute)

    def in_first_zone_with_room(self) -> Submission:
        """Create the instance.

        Raises:
            NoCapacity, InternalError, NotOffered, QuotaExceeded, PermissionDenied, ComputeError:
                no instance exists.
            ClaimLost: none of ours does; another client asks for it.
            CleanupError: one may.
        """
        refused: list[tuple[Settings, str, GceBackendError]] = []
        for settings in self._settings.choices:
            for zone in sorted(settings.zones, key=lambda each: each == self._avoid):
                if _is_pointless(settings, zone, refused):
                    continue
                try:
                    return self._in(settings, zone)
                except _NEXT_ZONE as error:
                    refused.append((settings, zone, error))
                    if isinstance(error, QuotaExceeded) and error.is_global:
                        raise _nowhere(self._settings, refused) from error
                    self._console.warn(f"{error}; trying the next zone")
                except PermissionDenied as error:
                    raise PermissionDenied(_who_may(self._settings, error)) from error
                except ComputeError as error:
                    raise self._told(error, zone) from error
        raise _nowhere(self._settings, refused)

    def _told(self, error: ComputeError, zone: str) -> ComputeError:
        """The same error, with what is true now and what to do."""
        name, project = instance_name(self._paths.run_id, self._attempt), self._settings.project
        if isinstance(error, AlreadyExists):
            what = (
                "It is not this run's and was left as it is; if it runs, it bills. See:\n"
                f"  gcloud compute instances describe {name} --zone {zone} --project {project}"
            )
        elif error.transient:
            what = (
                "No instance exists; one that came late would find its run cancelled, and delete "
                "itself. When Compute Engine answers again, submit again. See that nothing is "
                "left:\n  mlflow-gce ps"
            )
        else:
            what = "No instance exists. See what a run needs here:\n  mlflow-gce doctor"
        told = type(error)(f"{_sentence(error)} {what}")
        told.transient = error.transient
        return told

    def _in(self, settings: Settings, zone: str) -> Submission:
        run_id, now = self._paths.run_id, round(time.time(), 3)
        submission = Submission(
            run_id=run_id,
            project=settings.project,
            zone=zone,
            instance=instance_name(run_id, self._attempt),
            bucket=settings.bucket,
            paths=self._paths,
            tracking_uri=self._tracking.uri,
            deadline=now + lifetime_seconds(settings) + _BOOT_SLACK_SECONDS,
            created_at=now,
            usd_per_hour=usd_per_hour(settings, zone),
            attempt=self._attempt,
            client=this_client(),
            ssh_via=settings.gce.ssh_via,
        )
        # The intent is written down before the insert: whoever comes after a crash knows where
        # to look. The claim first: whoever lost it must not write over what the other one wrote.
        if self._claim:
            self._claim.announce(submission)
        machine_type = {"gce.machine_type": settings.machine.machine_type}
        self._tracking.set_tags(run_id, {**submission.tags(), **machine_type})
        History(self._storage, self._paths).record(
            Event(self._attempt, Phase.CREATING, now, "", zone, submission.instance)
        )
        body = insert_body(
            settings,
            zone,
            run_id=run_id,
            attempt=self._attempt,
            spec_uri=f"gs://{settings.bucket}/{self._paths.spec}",
            agent=self._agent,
            deadline=submission.deadline,
            run_name=str(self._tracking.get_run(run_id).info.run_name),
            ssh_key=self._ssh_key(submission),
        )
        # From here on there is something to detach from: signals leave a wish, also after this.
        before = self._interrupts.defer()
        try:
            with self._deleted_on_error(submission, body["labels"]):
                self._compute.insert(zone, body)
                if self._claim:
                    self._claim.confirm()
        except BaseException:
            self._interrupts.defer(before)
            raise
        self._console.phase("created", time.time() - now, submission.resource)
        return submission

    def _ssh_key(self, submission: Submission) -> str | None:
        """The public half of a key for this instance alone; no run fails for want of one."""
        if submission.ssh_via == "none":
            return None
        try:
            return SshState(submission.run_id).make_key(submission.deadline)
        except SshError as error:
            self._console.warn(f"{error}. The run goes on without SSH")
            return None

    @contextmanager
    def _deleted_on_error(self, submission: Submission, labels: dict[str, str]) -> Iterator[None]:
        """Whatever goes wrong while an instance is created, none is left behind.

        An insert whose reply got lost, or whose operation timed out, may take effect even after
        the delete; such an instance finds the run cancelled and deletes itself. Where another
        client asks by now, its instance has the same name, and neither is done to it.
        """
        try:
            yield
        except (PermissionDenied, AlreadyExists, NotOffered):
            raise  # refused before anything was made; what bears the name is not ours
        except BaseException as error:
            if self._claim and self._claim.is_lost():
                if self._bears(submission, labels):
                    delete(self._compute, submission, because=str(error))
                raise ClaimLost(f"{error}; another client goes on with the run") from error
            if isinstance(error, (NoCapacity, InternalError, QuotaExceeded)):
                delete(self._compute, submission, because=str(error))
                raise
            if not isinstance(error, ComputeError) or error.transient:
                with contextlib.suppress(StorageError):
                    give_up(self._storage, self._paths)
            delete(self._compute, submission, because=str(error))
            raise

    def _bears(self, submission: Submission, labels: dict[str, str]) -> bool:
        """Whether the instance of that name is this client's: the deadline's label tells."""
        try:
            found = self._compute.get(submission.zone, submission.instance)
        except ComputeError:  # there is none, or none to be seen: the other client's must not end
            return False
        return found.get("labels") == labels


def _is_pointless(
    settings: Settings, zone: str, refused: list[tuple[Settings, str, GceBackendError]]
) -> bool:
    """A quota belongs to a region: its other zones would answer the same machine the same."""
    return any(
        isinstance(error, QuotaExceeded)
        and tried.machine == settings.machine
        and _region(tried_zone) == _region(zone)
        for tried, tried_zone, error in refused
    )


def _region(zone: str) -> str:
    return zone.rpartition("-")[0]


def _nowhere(
    settings: Settings, refused: list[tuple[Settings, str, GceBackendError]]
) -> GceBackendError:
    machines = dict.fromkeys(tried.machine.machine_type for tried, _, _ in refused)
    what = f"{' or '.join(machines)}{' (spot)' if settings.machine.spot else ''}"
    lines = "\n".join(f"  {error}" for _, _, error in refused)
    quotas = [(zone, e) for _, zone, e in refused if isinstance(e, QuotaExceeded)]
    if any(error.is_global for _, error in quotas):
        return QuotaExceeded(
            f"no quota for {what} in any region. No instance exists. What came back:\n{lines}\n"
            f"See: gcloud compute project-info describe --project {settings.project}",
            is_global=True,
        )
    if quotas:
        region = _region(quotas[0][0])
        return QuotaExceeded(
            f"no quota for {what}. No instance exists. What came back:\n{lines}\n"
            f"See: gcloud compute regions describe {region} --project {settings.project}"
        )
    if all(isinstance(error, NotOffered) for _, _, error in refused):
        names = " OR ".join(f"name={machine}" for machine in machines)
        return NotOffered(
            f"no zone offers {what}. No instance exists. What came back:\n{lines}\n"
            f"See where there is one: gcloud compute machine-types list --filter '{names}' "
            f"--project {settings.project}"
        )
    if all(isinstance(error, (InternalError, NotOffered)) for _, _, error in refused):
        return InternalError(
            f"Compute Engine accepted {what} and did not make it. No instance exists. What came "
            f"back:\n{lines}\nThe cause is not on this side. Try again later, or other zones "
            "(-P gce.zones=[…])"
        )
    return NoCapacity(
        f"no zone has room for {what} now. No instance exists. What came back:\n{lines}\n"
        "Try again later, another machine (-P machine=…) or other zones (-P gce.zones=[…])"
    )


def _who_may(settings: Settings, error: PermissionDenied) -> str:
    return (
        f"{_sentence(error)} No instance exists. Creating one takes the roles "
        "roles/compute.instanceAdmin.v1 and, "
        f"for the service account {settings.gce.service_account!r}, "
        "roles/iam.serviceAccountUser. See what you have:\n"
        f"  gcloud projects get-iam-policy {settings.project} --flatten=bindings[].members "
        '--filter="bindings.members:$(gcloud config get account)" --format="value(bindings.role)"'
    )


def _sentence(said: object) -> str:
    """With one full stop, whatever the API ends its own with."""
    return f"{str(said).rstrip('.')}."


def give_up(storage: Storage, paths: RunPaths) -> None:
    """Let an instance whose insert comes late end itself. A person's cancel says so already, and
    stays. Raises StorageError."""
    storage.put_if(paths.cancel, GIVEN_UP, "0")


def delete(compute: Compute, submission: Submission, *, because: str = "") -> None:
    """Delete the instance and return once it is proven to be gone.

    Raises:
        CleanupError: it may still exist and bill.
    """
    try:
        compute.delete(submission.zone, submission.instance)
    except ComputeError as error:
        raise CleanupError(
            f"{f'{_sentence(because)} ' if because else ''}cannot delete instance "
            f"{submission.instance!r} in {submission.zone}: {_sentence(error)} "
            f"It may still be billing, until {submission.deadline_text()} at the latest, when "
            "Compute Engine deletes it. Run:\n"
            f"  gcloud compute instances delete {submission.where}",
            instance=submission.instance,
            zone=submission.zone,
        ) from error
    SshState(submission.run_id).forget()
