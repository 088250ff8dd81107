"""What is on offer where: regions, zones, machine types, accelerators and disk types.

The table is ``data/catalog.json``, after Google's pages "Available regions and zones" and "GPU
regions and zones", and SkyPilot's catalogue (both as of 2026): a selection, not the whole.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from .names import url

_EPOCH = "2014-05-30T18:35:16.514-07:00"  # what long-standing resources answer as their creation


@cache
def table() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(
        (Path(__file__).parent / "data" / "catalog.json").read_text()
    )
    return loaded


@cache
def zones() -> dict[str, str]:
    """zone -> region, ordered."""
    return {
        f"{region}-{letter}": region
        for region, letters in table()["regions"].items()
        for letter in letters
    }


def machine_type(zone: str, name: str) -> dict[str, Any] | None:
    """The table's row, or None where the zone does not offer it."""
    return _offered("machineTypes", zone, name)


def accelerator_type(zone: str, name: str) -> dict[str, Any] | None:
    return _offered("acceleratorTypes", zone, name)


def disk_type(zone: str, name: str) -> dict[str, Any] | None:
    row: dict[str, Any] | None = table()["diskTypes"].get(name)
    return row if zone in zones() else None


def size(machine: str) -> tuple[int, int]:
    """(cores, bytes of memory) of a machine type."""
    row = table()["machineTypes"][machine]
    return row["cpus"], row["memoryMb"] * 1024 * 1024


def family(machine: str) -> dict[str, Any]:
    """CPU platform and the disk types of a machine type's family."""
    row: dict[str, Any] = table()["families"][machine.partition("-")[0]]
    return row


def offered(kind: str, zone: str) -> list[str]:
    """Names of ``kind`` (``machineTypes``, …) that ``zone`` offers."""
    return [name for name in table()[kind] if _offered(kind, zone, name) is not None]


def _offered(kind: str, zone: str, name: str) -> dict[str, Any] | None:
    row: dict[str, Any] | None = table()[kind].get(name)
    if row is None or zone not in zones():
        return None
    where = row.get("zones", "all")
    return row if where == "all" or zone in where else None


def _identity(kind: str, path: str) -> dict[str, Any]:
    number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:7], "big")
    return {
        "kind": f"compute#{kind}",
        "id": str(number),
        "name": path.rsplit("/", 1)[-1],
        "creationTimestamp": _EPOCH,
        "selfLink": url(path),
    }


def zone_resource(project: str, zone: str) -> dict[str, Any]:
    region = zones()[zone]
    families = table()["families"].values()
    return {
        **_identity("zone", f"projects/{project}/zones/{zone}"),
        "description": zone,
        "status": "UP",
        "region": url(f"projects/{project}/regions/{region}"),
        "availableCpuPlatforms": sorted({row["cpuPlatform"] for row in families}),
    }


def region_resource(project: str, region: str, usage: dict[str, float]) -> dict[str, Any]:
    """``usage``: quota metric -> what is in use now."""
    limits = {"CPUS": 72.0, "INSTANCES": 720.0, "DISKS_TOTAL_GB": 102400.0, "NVIDIA_T4_GPUS": 4.0}
    return {
        **_identity("region", f"projects/{project}/regions/{region}"),
        "description": region,
        "status": "UP",
        "zones": [
            url(f"projects/{project}/zones/{zone}") for zone, of in zones().items() if of == region
        ],
        "quotas": [
            {"metric": metric, "limit": limit, "usage": usage.get(metric, 0.0)}
            for metric, limit in limits.items()
        ],
    }


def machine_type_resource(project: str, zone: str, name: str) -> dict[str, Any] | None:
    row = machine_type(zone, name)
    if row is None:
        return None
    memory_gb = row["memoryMb"] / 1024
    return {
        **_identity("machineType", f"projects/{project}/zones/{zone}/machineTypes/{name}"),
        "description": f"{row['cpus']} vCPUs, {memory_gb:g} GB RAM",
        "guestCpus": row["cpus"],
        "memoryMb": row["memoryMb"],
        "imageSpaceGb": 0,
        "maximumPersistentDisks": 128,
        "maximumPersistentDisksSizeGb": "263168",
        "zone": zone,
        "isSharedCpu": name in ("e2-micro", "e2-small", "e2-medium"),
        "architecture": "X86_64",
        **({"accelerators": row["accelerators"]} if "accelerators" in row else {}),
    }


def accelerator_type_resource(project: str, zone: str, name: str) -> dict[str, Any] | None:
    row = accelerator_type(zone, name)
    if row is None:
        return None
    return {
        **_identity("acceleratorType", f"projects/{project}/zones/{zone}/acceleratorTypes/{name}"),
        "description": row["description"],
        "zone": url(f"projects/{project}/zones/{zone}"),
        "maximumCardsPerInstance": row["maximum"],
    }


def disk_type_resource(project: str, zone: str, name: str) -> dict[str, Any] | None:
    row = disk_type(zone, name)
    if row is None:
        return None
    return {
        **_identity("diskType", f"projects/{project}/zones/{zone}/diskTypes/{name}"),
        "description": row["description"],
        "validDiskSize": row["validDiskSize"],
        "defaultDiskSizeGb": row["defaultDiskSizeGb"],
        "zone": url(f"projects/{project}/zones/{zone}"),
    }
