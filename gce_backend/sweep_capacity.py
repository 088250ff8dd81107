"""How many more instances may run: a limit of the user's, and what the region's quotas leave.

Compute Engine has the last word, an insert may still be refused; this keeps a sweep from asking
two hundred times for what sixty-four can have.
"""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections import Counter
from collections.abc import Callable

from gce_backend.config import Machine, Settings

Quotas = dict[str, float]  # metric -> what is free

_FRESH_SECONDS = 20.0
# https://cloud.google.com/compute/resource-usage: these families count against CPUS.
_SHARED_CPUS = ("n1", "e2", "g2", "t2d", "n4", "c4")
_GPUS = {"g2": "NVIDIA_L4_GPUS", "a2": "NVIDIA_A100_GPUS", "a3": "NVIDIA_H100_GPUS"}
_CPUS_PER_GPU = {"a2": 12, "a3": 26}


def demand(machine: Machine, *, external_ip: bool) -> Quotas:
    """What one instance uses of the region's quotas, by metric."""
    family = machine.machine_type.partition("-")[0]
    wanted: Counter[str] = Counter(INSTANCES=1)
    cpus = "CPUS" if family in _SHARED_CPUS else f"{family.upper()}_CPUS"
    wanted[cpus] += _cpus(machine.machine_type)
    if machine.gpus:
        attached = (machine.accelerator_type or "").upper().replace("-", "_").replace("TESLA_", "")
        wanted[f"{attached}_GPUS" if attached else _GPUS.get(family, "GPUS")] += machine.gpus
    disks = "DISKS_TOTAL_GB" if machine.disk_type == "pd-standard" else "SSD_TOTAL_GB"
    if machine.disk_type.startswith("hyperdisk"):
        disks = "HDB_TOTAL_GB"
    wanted[disks] += machine.disk_gb
    if external_ip:
        wanted["IN_USE_ADDRESSES"] += 1
    if machine.spot:
        for metric in [metric for metric in wanted if metric.endswith(("CPUS", "GPUS"))]:
            wanted[f"PREEMPTIBLE_{metric}"] = wanted[metric]
    return {metric: float(number) for metric, number in wanted.items() if number}


def _cpus(machine_type: str) -> int:
    """vCPUs of a predefined type by its name; 0 where the name does not tell."""
    family, _, rest = machine_type.partition("-")
    if found := re.search(r"-(\d+)$", rest):
        return int(found.group(1))
    if found := re.search(r"-(\d+)g$", rest):
        return _CPUS_PER_GPU.get(family, 0) * int(found.group(1))
    return 0


class Capacity:
    """Safe to use from several threads.

    Args:
        read: a region's name to its quotas; asked again when what is known is 20 s old.
    """

    def __init__(
        self, read: Callable[[str], Quotas], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Quotas]] = {}
        self._in_flight: dict[int, tuple[str, Quotas, float | None]] = {}

    def reserve(self, job: int, settings: Settings) -> Settings | None:
        """``settings`` with the zones whose region has room, or None when none has.

        What is reserved is given back by `release`; once the instance `exists`, the region's own
        figures count it.
        """
        wanted = demand(settings.machine, external_ip=settings.gce.external_ip)
        with self._lock:
            zones = [zone for zone in settings.zones if self._has_room(_region(zone), wanted)]
            if not zones:
                return None
            self._in_flight[job] = (_region(zones[0]), wanted, None)
            return dataclasses.replace(settings, zones=tuple(zones))

    def exists(self, job: int) -> None:
        """The job's instance has been created: figures read from now on include it."""
        with self._lock:
            if job in self._in_flight:
                region, wanted, _ = self._in_flight[job]
                self._in_flight[job] = (region, wanted, self._clock())

    def release(self, job: int) -> None:
        """The job has no instance any more, or never got one."""
        with self._lock:
            self._in_flight.pop(job, None)

    def _has_room(self, region: str, wanted: Quotas) -> bool:
        read_at, free = self._free(region)
        for other, used, existed_at in self._in_flight.values():
            if other == region and (existed_at is None or existed_at > read_at):
                free = {metric: left - used.get(metric, 0.0) for metric, left in free.items()}
        return all(free[metric] >= number for metric, number in wanted.items() if metric in free)

    def _free(self, region: str) -> tuple[float, Quotas]:
        known = self._known.get(region)
        if known is None or self._clock() - known[0] > _FRESH_SECONDS:
            at = self._clock()
            known = self._known[region] = (at, self._read(region))
        return known


def _region(zone: str) -> str:
    return zone.rpartition("-")[0]


def free_quotas(resource: dict[str, object]) -> Quotas:
    """What a region's resource (``regions.get``) says is left; quotas of zero are none at all.

    A project without any quota for preemptible CPUs uses the ordinary one.
    """
    rows = resource.get("quotas")
    free: Quotas = {}
    for row in rows if isinstance(rows, list) else []:
        limit, usage = float(row.get("limit", 0.0)), float(row.get("usage", 0.0))
        if limit > 0 or not str(row.get("metric", "")).startswith("PREEMPTIBLE_"):
            free[str(row["metric"])] = limit - usage
    for metric in [metric for metric in free if metric.startswith("PREEMPTIBLE_")]:
        # Where preemptible quota exists, it is what spot instances use.
        free.setdefault(metric.removeprefix("PREEMPTIBLE_"), 0.0)
    return free
