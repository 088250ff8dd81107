"""Deleting what outlived its run, and nothing else: the judgement (pure), then the deed.

::

    past its deadline ───────────────────────────────▶ OVERDUE   delete
    bucket or labels unreadable ─────────────────────▶ UNREADABLE  report
    status.json, verified, manifest equal to bucket ─▶ PROVEN    delete
    status.json, something missing ──────────────────▶ KEPT      report
    no status.json, stopped ─────────────────────────▶ STOPPED   report; started again if asked to
    no status.json, heartbeat stale or absent ───────▶ SILENT    report; reset once if asked to
    no status.json, heartbeat fresh or young ────────▶ WORKING   leave alone

Before its deadline only proof deletes an instance; a silence never does. The bucket asked is the
one that the instance's own metadata name, whatever the caller has configured.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gce_backend.compute import Compute
from gce_backend.errors import ComputeError, GceBackendError, StorageError
from gce_backend.fleet import Fleet, FoundInstance
from gce_backend.proof import unproven
from gce_backend.storage import Storage

_SILENCE_SECONDS = 120.0  # a heartbeat comes every five
_BOOT_SECONDS = 900.0  # to the first heartbeat; an image with a driver to install takes minutes
# A network that is away for a while is no reason to end a training; a hang of the machine is, and
# what the training had not saved is lost with it either way.
_RESET_SECONDS = 900.0
_AT_ONCE = 16
_BUCKET_SECONDS = 20.0  # of retries: a bucket that is away is reported, not waited for


@enum.unique
class Fate(enum.Enum):
    """What is to become of an instance."""

    WORKING = "working"
    OVERDUE = "overdue"
    PROVEN = "proven"
    KEPT = "kept"
    STOPPED = "stopped"
    SILENT = "silent"
    UNREADABLE = "unreadable"


_DELETED = frozenset({Fate.OVERDUE, Fate.PROVEN})


@dataclass(frozen=True)
class Evidence:
    """What the bucket says of an instance's run.

    Args:
        missing: what is not proven of ``status``'s results.
        heartbeat_at: unix seconds; None: there never was one.
        phase: the agent's last by its heartbeat, such as ``running``.
        unreadable: why the rest could not be read, and is worth nothing.
    """

    status: dict[str, Any] | None = None
    missing: tuple[str, ...] = ()
    heartbeat_at: float | None = None
    phase: str = ""
    unreadable: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is to become of an instance, and why.

    Args:
        why: one sentence.
        command: what a person may want to run next.
        silence: of one that is silent, in seconds.
    """

    fate: Fate
    why: str
    command: str = ""
    silence: float = 0.0

    @property
    def deletes(self) -> bool:
        return self.fate in _DELETED


@dataclass(frozen=True)
class Outcome:
    """What was done about one instance.

    Args:
        deed: ``deleted`` (a GET said 404), ``started``, ``reset`` or ``left``.
        error: why something wanted was not done, or could not be known.
    """

    instance: FoundInstance
    verdict: Verdict
    deed: str = "left"
    error: str = ""


def judge(instance: FoundInstance, evidence: Evidence, now: float) -> Verdict:
    """What is to become of ``instance``. Pure."""
    if is_overdue(instance, now):
        return Verdict(Fate.OVERDUE, f"its deadline passed {_ago(now - (instance.deadline or 0))}")
    if evidence.unreadable:
        return Verdict(Fate.UNREADABLE, evidence.unreadable, _describe(instance))
    status = evidence.status
    if status is not None and _is_of(status, instance):
        return _ended(instance, evidence, str(status.get("end_reason", "")))
    if instance.is_stopped:
        why = f"{instance.status} without a status.json; its disk bills, with what it had not saved"
        start = f"gcloud compute instances start {instance.where}"
        return Verdict(Fate.STOPPED, why, start)
    return _lives(instance, evidence.heartbeat_at, now)


def is_overdue(instance: FoundInstance, now: float) -> bool:
    return instance.deadline is not None and now > instance.deadline


def _is_of(status: dict[str, Any], instance: FoundInstance) -> bool:
    """Whether a status.json tells of this instance; an earlier attempt's says nothing of it."""
    return int(status.get("attempt", 1)) >= instance.attempt


def _ended(instance: FoundInstance, evidence: Evidence, reason: str) -> Verdict:
    if not evidence.missing:
        why = f"its run ended ({reason.replace('_', ' ')}) and its results are verified"
        return Verdict(Fate.PROVEN, why)
    first, more = evidence.missing[0], len(evidence.missing) - 1
    why = f"results unverified: {first}{f' and {more} more' if more else ''}"
    return Verdict(Fate.KEPT, why, f"mlflow-gce rescue {instance.run_id}")


def _lives(instance: FoundInstance, heartbeat_at: float | None, now: float) -> Verdict:
    age = now - instance.started_at
    if heartbeat_at is None:
        if age < _BOOT_SECONDS:
            return Verdict(Fate.WORKING, "boots")
        silence, why = age, f"no sign of life since it was started {_ago(age)}"
    else:
        # An instance that was started again: its last heartbeat is from before.
        silence = now - max(heartbeat_at, instance.started_at)
        if silence < _SILENCE_SECONDS or age < _SILENCE_SECONDS:
            return Verdict(Fate.WORKING, "works")
        why = f"last sign of life {_ago(silence)}"
    look = f"gcloud compute instances get-serial-port-output {instance.where}"
    return Verdict(Fate.SILENT, f"{why}; it bills until its deadline at most", look, silence)


def _describe(instance: FoundInstance) -> str:
    return f"gcloud compute instances describe {instance.where}"


def _ago(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min ago" if minutes < 120 else f"{minutes / 60:.1f} h ago"


class Reaper:
    """Looks at instances and deletes those whose time has come.

    Args:
        endpoint: as in ``config.Endpoints.compute``.
    """

    def __init__(self, project: str, *, endpoint: str | None) -> None:
        self._fleet = Fleet(project, endpoint=endpoint)
        self._compute = Compute(project, endpoint=endpoint)
        self._evidence = EvidenceReader(project)

    def run(
        self,
        *,
        owner: str | None = None,
        dry_run: bool = False,
        collect: bool = False,
        proven_only: bool = False,
        leave: Callable[[FoundInstance], bool] = lambda _: False,
    ) -> Iterator[Outcome]:
        """Judge every instance and act; outcomes as they come.

        Args:
            owner: only that owner's (the label's value).
            dry_run: act on none.
            collect: boot those again that stopped before they had saved everything, and, once,
                those that have been silent for a quarter of an hour: their agents go on.
            proven_only: delete only what is proven, not what is overdue.
            leave: instances that somebody else takes care of.

        Raises:
            ComputeError, PermissionDenied: the instances could not be listed.
        """
        wanted = [i for i in self._fleet.list(owner=owner) if not leave(i)]

        def settle(instance: FoundInstance) -> Outcome:
            now = time.time()
            overdue = is_overdue(instance, now) and not proven_only
            evidence = Evidence() if overdue else self._evidence.of(instance)
            verdict = judge(instance, evidence, now)
            if verdict.fate is Fate.OVERDUE and proven_only:
                return Outcome(instance, verdict)
            if dry_run:
                return Outcome(instance, verdict, error=_unreadable(verdict))
            return self._act(instance, verdict, collect=collect)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from pool.map(settle, wanted)

    def _act(self, instance: FoundInstance, verdict: Verdict, *, collect: bool) -> Outcome:
        try:
            if verdict.deletes:
                self._compute.delete(instance.zone, instance.name)
                return Outcome(instance, verdict, "deleted")
            if verdict.fate is Fate.STOPPED and collect:
                self._fleet.start(instance)
                return Outcome(instance, verdict, "started")
            if verdict.silence > _RESET_SECONDS and collect and not self._was_reset(instance):
                self._fleet.reset(instance)
                return Outcome(instance, verdict, "reset")
        except ComputeError as error:
            return Outcome(instance, verdict, error=str(error))
        return Outcome(instance, verdict, error=_unreadable(verdict))

    def _was_reset(self, instance: FoundInstance) -> bool:
        """One that a reset did not help is not helped by another, nor is its training."""
        operations = self._compute.operations_on(instance.zone, instance.name)
        return any(each.get("operationType") == "reset" for each in operations)


def _unreadable(verdict: Verdict) -> str:
    return verdict.why if verdict.fate is Fate.UNREADABLE else ""


class EvidenceReader:
    """Reads what buckets say of instances; safe to use from several threads."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._storage: Storage | None = None

    def of(self, instance: FoundInstance, *, hurried: bool = False) -> Evidence:
        """Never raises for a bucket: what cannot be read is told in the evidence.

        Args:
            hurried: one that works, by its heartbeat, is not asked whether it has ended.
        """
        if instance.bucket is None or instance.paths is None:
            return Evidence(unreadable="its metadata name no spec, so no bucket to ask")
        try:
            storage = self._in(instance.bucket)
            if hurried:
                alive = _alive(storage.read_json(instance.paths.heartbeat), instance)
                if alive.phase not in ("", "collecting") and not _is_silent(alive, instance):
                    return alive
            status = storage.read_json(instance.paths.status)
            if status is not None and _is_of(status, instance):
                missing = tuple(unproven(storage, instance.paths, status))
                return Evidence(status=status, missing=missing)
            return _alive(storage.read_json(instance.paths.heartbeat), instance)
        except StorageError as error:
            return Evidence(unreadable=str(error))
        except (GceBackendError, LookupError, TypeError, ValueError, AttributeError) as error:
            uri = storage_uri(instance)
            return Evidence(unreadable=f"{uri}: not what an agent writes ({error!r})")

    def _in(self, bucket: str) -> Storage:
        if self._storage is None:
            self._storage = Storage(bucket, project=self._project, retry_seconds=_BUCKET_SECONDS)
        return self._storage.in_bucket(bucket)


def _alive(heartbeat: dict[str, Any] | None, instance: FoundInstance) -> Evidence:
    if heartbeat is None or int(heartbeat.get("attempt", 1)) != instance.attempt:
        return Evidence()
    phases = heartbeat.get("phases", [])
    return Evidence(
        heartbeat_at=float(heartbeat["at"]), phase=str(phases[-1]["phase"]) if phases else ""
    )


def _is_silent(alive: Evidence, instance: FoundInstance) -> bool:
    verdict = judge(instance, alive, time.time())
    return verdict.fate is not Fate.WORKING


def storage_uri(instance: FoundInstance) -> str:
    """Where its run's own files are."""
    return f"gs://{instance.bucket}/{instance.paths.root if instance.paths else ''}"


def problems(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those where something could not be known or done: a reason to exit with an error."""
    return [outcome for outcome in outcomes if outcome.error]
