"""Which quotas one instance takes. Pure.

Metrics as ``compute.regions.get`` and ``projects.get`` list them; families without a metric of
their own (N1, E2) count in CPUS.
"""

from __future__ import annotations

from gce_backend.config import Machine

_OWN_CPUS = ("n2", "n2d", "c2", "c2d", "c3", "c4", "a2", "a3", "m1", "m2")
_GPU_METRIC = {
    "nvidia-tesla-t4": "NVIDIA_T4_GPUS",
    "g2": "NVIDIA_L4_GPUS",
    "a2": "NVIDIA_A100_GPUS",
    "a3": "NVIDIA_H100_GPUS",
}


def needed_quota(machine: Machine, cpus: int) -> dict[str, float]:
    """Metric -> how much of it.

    Args:
        cpus: of the machine type.
    """
    family = machine.machine_type.partition("-")[0]
    cpu_metric = f"{family.upper()}_CPUS" if family in _OWN_CPUS else "CPUS"
    needed: dict[str, float] = {"INSTANCES": 1}
    if not machine.spot:  # spot takes PREEMPTIBLE_CPUS where the project has that quota
        needed[cpu_metric] = cpus
    disk_metric = "DISKS_TOTAL_GB" if machine.disk_type == "pd-standard" else "SSD_TOTAL_GB"
    needed[disk_metric] = machine.disk_gb
    if machine.gpus:
        metric = _GPU_METRIC.get(machine.accelerator_type or family)
        if metric:
            needed[f"PREEMPTIBLE_{metric}" if machine.spot else metric] = machine.gpus
        needed["GPUS_ALL_REGIONS"] = machine.gpus
    return needed
