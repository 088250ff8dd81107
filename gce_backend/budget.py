"""What an instance costs, and how long a run's money lasts. Pure; prices are list prices."""

from __future__ import annotations

import dataclasses

from gce_backend.config import Settings
from gce_backend.errors import ConfigError
from gce_backend.prices import price


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


def within_cost(settings: Settings) -> Settings:
    """The settings with ``gce.max_hours`` no longer than ``gce.max_cost_usd`` pays for.

    Counted at the dearest zone of the dearest machine, the rescue window included, so that the
    limit holds wherever the instance comes to be.

    Raises:
        ConfigError: a price is not known, or the money does not pay for any training.
    """
    limit = settings.gce.max_cost_usd
    if limit is None:
        return settings
    dearest = 0.0
    for each in settings.choices:
        for zone in each.zones:
            usd = usd_per_hour(each, zone)
            if usd is None:
                raise ConfigError(
                    f"gce.max_cost_usd={limit}: no list price is known for "
                    f"{each.machine.machine_type} in {zone}, so the limit cannot be held. Leave "
                    "the zone out with gce.zones, or limit the run with gce.max_hours alone"
                )
            dearest = max(dearest, usd)
    hours = limit / dearest - settings.gce.rescue_minutes / 60
    if hours <= 0:
        raise ConfigError(
            f"gce.max_cost_usd={limit}: at ${dearest:.3f}/h it does not even pay for "
            f"gce.rescue_minutes={settings.gce.rescue_minutes:g}, the time for saving results"
        )
    return with_hours(settings, min(hours, settings.gce.max_hours))


def with_hours(settings: Settings, hours: float) -> Settings:
    """The settings with another ``gce.max_hours``."""
    return dataclasses.replace(settings, gce=dataclasses.replace(settings.gce, max_hours=hours))
