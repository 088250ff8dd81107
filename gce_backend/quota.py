"""Which quotas one instance takes, and what a region has left. Pure.

Metrics as ``compute.regions.get`` and ``projects.get`` list them. The newest families (C4, N4, A3)
have none there: their CPUs count against a quota by family that only Cloud Quotas knows, so
nothing is said of them, and Compute Engine's own answer decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from gce_backend.config import Machine

Quotas = dict[str, float]  # metric -> how much

# https://cloud.google.com/compute/resource-usage: these families share one quota.
_SHARED_CPUS = ("n1", "e2", "g2", "f1")
# Those of the API's enumeration of metrics.
_OWN_CPUS = ("a2", "c2", "c2d", "c3", "m1", "m2", "m3", "n2", "n2d", "t2a", "t2d")
_GPUS = {"g2": "NVIDIA_L4_GPUS", "a2": "NVIDIA_A100_GPUS", "a3": "NVIDIA_H100_GPUS"}
_CPUS_PER_GPU = {"a2": 12, "a3": 26}
_PREEMPTIBLE = "PREEMPTIBLE_"


def needed_quota(
    machine: Machine,
    cpus: int | None = None,
    *,
    known: Collection[str] = (),
    external_ip: bool = False,
) -> Quotas:
    """What one instance takes, by metric.

    Args:
        cpus: of the machine type; None: by its name.
        known: the metrics there is a quota for: a spot instance takes the preemptible one where the
            project has it, the ordinary one elsewhere.
        external_ip: the instance has an address of its own.
    """
    family = machine.machine_type.partition("-")[0]
    metered: Quotas = {}
    if family in _SHARED_CPUS or family in _OWN_CPUS:
        metric = "CPUS" if family in _SHARED_CPUS else f"{family.upper()}_CPUS"
        metered[metric] = _cpus(machine.machine_type) if cpus is None else cpus
    if machine.gpus:
        metered[_gpu_metric(machine, family)] = machine.gpus
    if machine.spot:
        metered = {
            own if (own := f"{_PREEMPTIBLE}{metric}") in known else metric: number
            for metric, number in metered.items()
        }
    needed: Quotas = {"INSTANCES": 1, **metered, _disk_metric(machine): machine.disk_gb}
    if machine.gpus:
        needed["GPUS_ALL_REGIONS"] = machine.gpus
    if external_ip:
        needed["IN_USE_ADDRESSES"] = 1
    return {metric: float(number) for metric, number in needed.items() if number}


def free_quotas(resource: Mapping[str, object]) -> Quotas:
    """What a region's or project's resource says is left, by metric.

    A preemptible quota of zero is none at all: spot instances then take the ordinary one.
    """
    rows = resource.get("quotas")
    free: Quotas = {}
    for row in rows if isinstance(rows, list) else []:
        metric, limit = str(row.get("metric", "")), float(row.get("limit", 0.0))
        if limit > 0 or not metric.startswith(_PREEMPTIBLE):
            free[metric] = limit - float(row.get("usage", 0.0))
    return free


def _cpus(machine_type: str) -> int:
    """vCPUs of a predefined type by its name; 0 where the name does not tell."""
    family, _, rest = machine_type.partition("-")
    if found := re.search(r"-(\d+)$", rest):
        return int(found.group(1))
    if found := re.search(r"-(\d+)g$", rest):
        return _CPUS_PER_GPU.get(family, 0) * int(found.group(1))
    return 0


def _gpu_metric(machine: Machine, family: str) -> str:
    if machine.accelerator_type:
        name = machine.accelerator_type.upper().replace("-", "_").replace("TESLA_", "")
        return f"{name}_GPUS"
    if machine.machine_type.startswith("a2-ultragpu"):
        return "NVIDIA_A100_80GB_GPUS"
    return _GPUS.get(family, "GPUS")


def _disk_metric(machine: Machine) -> str:
    if machine.disk_type.startswith("hyperdisk"):
        return "HDB_TOTAL_GB"
    return "DISKS_TOTAL_GB" if machine.disk_type == "pd-standard" else "SSD_TOTAL_GB"
