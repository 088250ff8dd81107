"""List prices, to say what a run may cost before it starts and what it did cost afterwards.

Estimates, in USD, without sustained-use or committed-use discounts. Sources: the Cloud Billing
catalogue as published by the SkyPilot catalogue and by Cyclenerd's pricing calculator, read on
``PRICE_DATE``; spot prices may change once a day. What ``price_catalog.py`` has refreshed since
goes before; it lies in the user's cache, and reading it takes no network.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gce_backend.agent.usage import usd

#: Names another Cloud Billing Catalog than Google's.
CATALOG_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDBILLING"
PRICE_DATE = "2026-11-01"

#: machine type -> region -> (on demand, spot), USD per hour.
MACHINE_USD_PER_HOUR: dict[str, dict[str, tuple[float, float]]] = {
    "n1-standard-1": {
        "us-central1": (0.0475, 0.0168),
        "europe-west1": (0.0523, 0.0218),
        "europe-west4": (0.0523, 0.0304),
    },
    "n1-standard-2": {
        "us-central1": (0.0950, 0.0335),
        "europe-west1": (0.1045, 0.0436),
        "europe-west4": (0.1046, 0.0608),
    },
    "n1-standard-4": {
        "us-central1": (0.1900, 0.0670),
        "europe-west1": (0.2090, 0.0872),
        "europe-west4": (0.2092, 0.1215),
    },
    "n1-standard-8": {
        "us-central1": (0.3800, 0.1340),
        "europe-west1": (0.4180, 0.1743),
        "europe-west4": (0.4183, 0.2431),
    },
    # A quarter of e2-standard-2, in cores and memory as in price: what a probe takes.
    "e2-small": {
        "us-central1": (0.0168, 0.0101),
        "europe-west1": (0.0184, 0.0089),
        "europe-west4": (0.0185, 0.0088),
    },
    "e2-standard-4": {
        "us-central1": (0.1340, 0.0804),
        "europe-west1": (0.1474, 0.0714),
        "europe-west4": (0.1475, 0.0705),
    },
    "e2-standard-8": {
        "us-central1": (0.2680, 0.1608),
        "europe-west1": (0.2949, 0.1428),
        "europe-west4": (0.2951, 0.1411),
    },
    "n2-standard-4": {
        "us-central1": (0.1942, 0.0921),
        "europe-west1": (0.2137, 0.0469),
        "europe-west4": (0.2138, 0.0777),
    },
    "c3-standard-4": {
        "us-central1": (0.2016, 0.0494),
        "europe-west1": (0.2220, 0.0848),
        "europe-west4": (0.2117, 0.0894),
    },
    "c4-standard-4": {
        "us-central1": (0.1977, 0.1186),
        "europe-west1": (0.2177, 0.1193),
        "europe-west4": (0.2076, 0.0749),
    },
    "g2-standard-4": {
        "us-central1": (0.7068, 0.3973),
        "europe-west1": (0.7783, 0.3575),
        "europe-west4": (0.7429, 0.3899),
    },
    "a2-highgpu-1g": {
        "us-central1": (3.6734, 1.9280),
        "europe-west4": (3.7480, 1.6928),
    },
    "a3-highgpu-1g": {
        "us-central1": (11.0612, 6.3262),
        "europe-west1": (12.1712, 4.7583),
        "europe-west4": (14.0676, 5.5148),
    },
}

#: accelerator attached to an N1 type -> (on demand, spot), USD per hour and GPU.
ACCELERATOR_USD_PER_HOUR = {"nvidia-tesla-t4": (0.35, 0.14)}

#: disk type -> USD per GB and month, europe-west1.
DISK_USD_PER_GB_MONTH = {
    "pd-standard": 0.04,
    "pd-balanced": 0.10,
    "pd-ssd": 0.17,
    "hyperdisk-balanced": 0.10,
}
EXTERNAL_IP_USD_PER_HOUR = 0.005
_HOURS_PER_MONTH = 730


@dataclass(frozen=True)
class Price:
    """What one instance costs by list price.

    Args:
        usd_per_hour: machine, accelerators, boot disk and external address together.
    """

    usd_per_hour: float

    def cost(self, seconds: float) -> float:
        """USD for an instance that lived ``seconds``; Compute Engine bills at least a minute."""
        return usd(self.usd_per_hour, seconds)


def price(
    machine_type: str,
    zone: str,
    *,
    spot: bool,
    disk_type: str,
    disk_gb: int,
    accelerator_type: str | None = None,
    accelerators: int = 0,
    external_ip: bool = True,
) -> Price | None:
    """The list price in ``zone``'s region, or None where the table does not know it."""
    column = 1 if spot else 0
    region = zone.rpartition("-")[0]
    known = _refreshed()
    machine = known.machines.get(machine_type, {}).get(region) or MACHINE_USD_PER_HOUR.get(
        machine_type, {}
    ).get(region)
    if machine is None or (accelerator_type and accelerator_type not in ACCELERATOR_USD_PER_HOUR):
        return None
    usd = machine[column]
    if accelerator_type:
        each = known.accelerators.get(accelerator_type, ACCELERATOR_USD_PER_HOUR[accelerator_type])
        usd += accelerators * each[column]
    usd += DISK_USD_PER_GB_MONTH.get(disk_type, 0.0) * disk_gb / _HOURS_PER_MONTH
    return Price(usd + (EXTERNAL_IP_USD_PER_HOUR if external_ip else 0.0))


def price_date() -> str:
    """Of which day the prices are; two, where not all were refreshed."""
    known = _refreshed()
    if not known.date:
        return PRICE_DATE
    whole = all(
        region in known.machines.get(machine, {})
        for machine, regions in MACHINE_USD_PER_HOUR.items()
        for region in regions
    )
    return known.date if whole else f"{known.date}, some {PRICE_DATE}"


def cache_file() -> Path:
    """Where refreshed prices are kept: ``$XDG_CACHE_HOME/mlflow-gce/prices.json``.

    Those of another catalog than Google's, which may be the emulator's inventions, lie beside it.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = "prices-elsewhere.json" if os.environ.get(CATALOG_VARIABLE) else "prices.json"
    return Path(home).expanduser() / "mlflow-gce" / name


@dataclass(frozen=True)
class _Refreshed:
    date: str
    machines: dict[str, dict[str, tuple[float, float]]]
    accelerators: dict[str, tuple[float, float]]


_NONE = _Refreshed("", {}, {})


def _refreshed() -> _Refreshed:
    file = cache_file()
    try:
        return _read(file, file.stat().st_mtime_ns)
    except OSError:
        return _NONE


@lru_cache(maxsize=4)
def _read(file: Path, _written: int) -> _Refreshed:
    """A file that is damaged, or older than the table here, is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = _Refreshed(
            str(content["date"]),
            {
                machine: {region: _pair(pair) for region, pair in regions.items()}
                for machine, regions in content["machines"].items()
            },
            {name: _pair(pair) for name, pair in content["accelerators"].items()},
        )
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return _NONE
    return found if found.date > PRICE_DATE else _NONE


def _pair(values: list[float]) -> tuple[float, float]:
    on_demand, spot = values
    return float(on_demand), float(spot)
