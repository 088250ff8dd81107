"""The price table refreshed from the Cloud Billing Catalog: list prices of today, for the presets.

The catalog prices cores, memory and GPUs, each by a description for people ("N1 Predefined Instance
Core running in Belgium"). Only what is read without doubt counts: one price for each part, and the
sum near the dated table's. Whatever is left out keeps the price and the date of that table.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from gce_backend.errors import ComputeError
from gce_backend.prices import (
    ACCELERATOR_USD_PER_HOUR,
    CATALOG_VARIABLE,
    MACHINE_USD_PER_HOUR,
    cache_file,
)
from gce_backend.rest import Rest

_GOOGLE = "https://cloudbilling.googleapis.com/"
_COMPUTE_ENGINE = "6F81-5844-456A"  # the service's id in the catalog
_PAGE_SIZE = 5000
_SECONDS = 60.0  # the whole list is tens of thousands of SKUs

#: machine type -> what it is made of: (part, how many of it).
_PARTS: dict[str, list[tuple[str, float]]] = {
    **{
        f"n1-standard-{cores}": [("N1 core", cores), ("N1 ram", cores * 3.75)]
        for cores in (1, 2, 4, 8)
    },
    "e2-small": [("E2 core", 0.5), ("E2 ram", 2)],
    "e2-standard-4": [("E2 core", 4), ("E2 ram", 16)],
    "e2-standard-8": [("E2 core", 8), ("E2 ram", 32)],
    "n2-standard-4": [("N2 core", 4), ("N2 ram", 16)],
    "c3-standard-4": [("C3 core", 4), ("C3 ram", 16)],
    "c4-standard-4": [("C4 core", 4), ("C4 ram", 15)],
    "g2-standard-4": [("G2 core", 4), ("G2 ram", 16), ("L4", 1)],
    "a2-highgpu-1g": [("A2 core", 12), ("A2 ram", 85), ("Tesla A100", 1)],
    "a3-highgpu-1g": [("A3 core", 26), ("A3 ram", 234), ("H100 80GB", 1)],
}
_ACCELERATORS = {"nvidia-tesla-t4": "Tesla T4"}
_COLUMNS = {"OnDemand": 0, "Preemptible": 1}
_SPOT = r"(?:Spot Preemptible )?"
_MACHINE = re.compile(
    rf"{_SPOT}(N1|E2|N2|C3|C4|G2|A2|A3)(?: Predefined)? Instance (Core|Ram) running in .+"
)
_GPU = re.compile(
    r"Nvidia (Tesla T4|L4|Tesla A100|H100 80GB) GPU"
    r"(?: attached to Spot Preemptible VMs)? running in .+"
)
#: (part, region, column) -> USD per hour; None: several SKUs disagree.
Parts = dict[tuple[str, str, int], float | None]


def refresh(*, emulated: bool) -> str:
    """Fetch the catalog and keep what it says for later commands.

    Returns:
        What was refreshed, in words.

    Raises:
        ComputeError, PermissionDenied: it is not to be had; the prices are as they were.
        OSError: they cannot be kept.
    """
    base = os.environ.get(CATALOG_VARIABLE) or _GOOGLE
    parts = parts_of(_skus(Rest(base, anonymous=emulated, retry_seconds=10.0)))
    machines, accelerators = machines_of(parts), accelerators_of(parts)
    if not machines:
        raise ComputeError("the Cloud Billing Catalog has no price that the presets' machines need")
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "machines": machines,
        "accelerators": accelerators,
    }
    file = cache_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    part.replace(file)
    known = sum(len(regions) for regions in machines.values())
    whole = sum(len(regions) for regions in MACHINE_USD_PER_HOUR.values())
    whose = f"the catalog's at {base}" if base != _GOOGLE else "the Cloud Billing Catalog's"
    return f"{known} of {whole} prices are {whose} of today: {file}"


def _skus(rest: Rest) -> Iterator[dict[str, Any]]:
    query: dict[str, Any] = {"pageSize": _PAGE_SIZE, "currencyCode": "USD"}
    end = time.monotonic() + _SECONDS
    while True:
        if time.monotonic() > end:
            raise ComputeError(f"the Cloud Billing Catalog was not read within {_SECONDS:.0f} s")
        path = f"v1/services/{_COMPUTE_ENGINE}/skus"
        page = rest.get("reading the Cloud Billing Catalog", path, **query)
        yield from page.get("skus", [])
        if not page.get("nextPageToken"):
            return
        query["pageToken"] = page["nextPageToken"]


def parts_of(skus: Iterable[dict[str, Any]]) -> Parts:
    """What one core, one GB or one GPU costs. Pure."""
    found: Parts = {}
    for sku in skus:
        column = _COLUMNS.get(sku.get("category", {}).get("usageType", ""))
        part = _part(str(sku.get("description", "")))
        usd = _usd_per_hour(sku)
        if column is None or part is None or usd is None:
            continue
        for region in sku.get("serviceRegions", []):
            key = (part, region, column)
            found[key] = usd if found.get(key, usd) == usd else None
    return found


def _part(description: str) -> str | None:
    if match := _MACHINE.fullmatch(description):
        return f"{match[1]} {match[2].lower()}"
    match = _GPU.fullmatch(description)
    return match[1] if match else None


def _usd_per_hour(sku: dict[str, Any]) -> float | None:
    """Of the only tier, in USD for an hour (of a GB); None: it is priced otherwise."""
    try:
        expression = sku["pricingInfo"][-1]["pricingExpression"]
        (rate,) = expression["tieredRates"]
        price = rate["unitPrice"]
        if expression["usageUnit"] not in ("h", "GiBy.h") or price["currencyCode"] != "USD":
            return None
        return int(price.get("units", 0)) + int(price.get("nanos", 0)) / 1e9
    except (LookupError, TypeError, ValueError):
        return None


def machines_of(parts: Parts) -> dict[str, dict[str, tuple[float, float]]]:
    """machine type -> region -> (on demand, spot), where every part is known. Pure."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for machine, regions in MACHINE_USD_PER_HOUR.items():
        for region, dated in regions.items():
            pair = _pair(parts, _PARTS[machine], region, dated)
            if pair is not None:
                found.setdefault(machine, {})[region] = pair
    return found


def accelerators_of(parts: Parts) -> dict[str, tuple[float, float]]:
    """Accelerator -> (on demand, spot), the dearest of the regions. Pure."""
    found = {}
    for name, dated in ACCELERATOR_USD_PER_HOUR.items():
        part = _ACCELERATORS[name]
        regions = {region for known, region, _ in parts if known == part}
        pairs = [_pair(parts, [(part, 1)], region, dated) for region in regions]
        if known_pairs := [pair for pair in pairs if pair is not None]:
            found[name] = max(known_pairs)
    return found


def _pair(
    parts: Parts, made_of: list[tuple[str, float]], region: str, dated: tuple[float, float]
) -> tuple[float, float] | None:
    sums = []
    for column in _COLUMNS.values():
        prices = [(parts.get((part, region, column)), many) for part, many in made_of]
        if any(price is None for price, _ in prices):
            return None
        sums.append(round(sum(price * many for price, many in prices if price is not None), 6))
    on_demand, spot = sums
    # Far from what it was some months ago: rather misread than changed so much.
    if not dated[0] / 2 <= on_demand <= dated[0] * 2 or not 0 < spot <= on_demand:
        return None
    return on_demand, spot
