"""What there is now, for a person to look at: every instance with what its run is doing.

Read from Compute Engine and the buckets alone, never from MLflow: importing its client takes
longer than the whole of this.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gce_backend.fleet import Fleet, FoundInstance
from gce_backend.prices import Price
from gce_backend.reaper import Evidence, EvidenceReader, Fate, Verdict, judge

_AT_ONCE = 16
# So long an ended run's instance may take to delete itself before it counts as an orphan.
_DELETING_SECONDS = 300.0


@dataclass(frozen=True)
class Standing:
    """One instance and its run.

    Args:
        phase: where it is, in one word: ``creating``, ``booting``, the agent's own phases
            (``fetching``, ``environment``, ``running``, ``collecting``), ``ended``, ``stopped``,
            ``deleting``, or ``?`` when the bucket could not be read.
        is_orphan: it should be gone: past its deadline, or ended and proven a while ago.
        age: seconds since it was created or last started.
        cost_usd: so far, by list price; None where the price is not known.
    """

    instance: FoundInstance
    phase: str
    verdict: Verdict
    is_orphan: bool
    age: float
    cost_usd: float | None


def standings(
    project: str,
    *,
    endpoint: str | None,
    owner: str | None = None,
    run_id: str | None = None,
) -> list[Standing]:
    """Every instance of ours in the project, the oldest first.

    Args:
        endpoint: as in ``config.Endpoints.compute``.
        owner, run_id: only this owner's (the label's value), only this run's.

    Raises:
        ComputeError, PermissionDenied: the instances could not be listed.
    """
    found = Fleet(project, endpoint=endpoint).list(owner=owner, run_id=run_id)
    if not found:
        return []
    reader = EvidenceReader(project)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        evidence = list(pool.map(lambda each: reader.of(each, hurried=True), found))
    now = time.time()
    return [standing(*pair, now) for pair in zip(found, evidence, strict=True)]


def standing(instance: FoundInstance, evidence: Evidence, now: float) -> Standing:
    """Pure."""
    verdict = judge(instance, evidence, now)
    age = max(0.0, now - instance.started_at)
    usd = instance.usd_per_hour
    return Standing(
        instance=instance,
        phase=_phase(instance, evidence),
        verdict=verdict,
        is_orphan=_is_orphan(verdict, evidence, now),
        age=age,
        cost_usd=None if usd is None or instance.is_stopped else Price(usd).cost(age),
    )


def _phase(instance: FoundInstance, evidence: Evidence) -> str:
    if instance.status in ("STOPPING", "PENDING_STOP", "DEPROVISIONING"):
        return "deleting"
    if instance.is_stopped:
        return "stopped"
    if evidence.unreadable:
        return "?"
    if evidence.status is not None:
        return "ended"
    return evidence.phase or ("booting" if instance.status == "RUNNING" else "creating")


def _is_orphan(verdict: Verdict, evidence: Evidence, now: float) -> bool:
    if verdict.fate is Fate.PROVEN:
        written_at = float((evidence.status or {}).get("written_at", 0.0))
        return now - written_at > _DELETING_SECONDS
    return verdict.fate is Fate.OVERDUE
