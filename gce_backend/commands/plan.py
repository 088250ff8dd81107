"""``mlflow-gce plan``: what a run would ask for and cost, before it costs anything."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gce_backend.commands.answering import guarded
from gce_backend.commands.lines import moment, print_json
from gce_backend.commands.options import JSON
from gce_backend.commands.settings import run_options, settings_of_run
from gce_backend.commands.tables import Column, print_facts, print_table, usd

if TYPE_CHECKING:
    from gce_backend.config import Settings

_COLUMNS = [
    Column("MACHINE"),
    Column("ZONE"),
    Column("ON DEMAND/h", right=True),
    Column("SPOT/h", right=True),
    Column("AT MOST", right=True),
]


@click.command()
@click.argument(
    "directory", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@run_options
@click.option("--backend-config", default="{}", help="As in `mlflow run`: JSON, or a file of it.")
@click.option("--refresh", is_flag=True, help="First ask the Cloud Billing Catalog for prices.")
@JSON
def plan(
    directory: Path,
    entry_point: str,
    parameters: dict[str, str],
    backend_config: str,
    refresh: bool,
    as_json: bool,
) -> None:
    """Say what a run of the project in DIRECTORY would ask for, and cost at most.

    Machines and zones in the order in which they are tried, their prices, and the deadline. Creates
    nothing, and asks no API but with --refresh. Prices are estimates: list prices of a day that is
    named; refreshed ones are kept for later runs.
    """
    if refresh:
        _refresh()
    config = _map(backend_config)
    settings = guarded(lambda: settings_of_run(directory, entry_point, parameters, config))
    rows = _rows(settings)
    if as_json:
        print_json(_as_json(settings, rows))
        return
    print_facts(f"plan for {directory.resolve().name}", _facts(settings, rows))
    click.echo()
    print_table(_COLUMNS, [_cells(row) for row in rows])


def _refresh() -> None:
    """Without new prices the old ones do, with their date."""
    from gce_backend.config import read_endpoints
    from gce_backend.errors import GceBackendError
    from gce_backend.price_catalog import refresh
    from gce_backend.prices import price_date

    try:
        click.echo(refresh(emulated=guarded(read_endpoints).emulated), err=True)
    except (GceBackendError, OSError) as error:
        click.echo(
            f"mlflow-gce: prices are still those of {price_date()}: {error}. The catalog takes "
            "credentials, and the API: gcloud services enable cloudbilling.googleapis.com",
            err=True,
        )


def _map(text: str) -> dict[str, Any]:
    path = Path(text)
    try:
        value = json.loads(path.read_text() if text.endswith(".json") else text)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{text!r}: {error}", param_hint="--backend-config") from None
    if not isinstance(value, dict):
        raise click.BadParameter(f"{text!r} is no map", param_hint="--backend-config")
    return value


def _rows(settings: Settings) -> list[dict[str, Any]]:
    """One for each machine and zone, in the order in which they are asked."""
    from gce_backend.budget import usd_per_hour
    from gce_backend.instance import lifetime_seconds

    hours = lifetime_seconds(settings) / 3600
    rows = []
    for each in settings.choices:
        spot, on_demand = (
            dataclasses.replace(each, machine=dataclasses.replace(each.machine, spot=spot))
            for spot in (True, False)
        )
        for zone in each.zones:
            price = usd_per_hour(each, zone)
            rows.append(
                {
                    "machine": each.machine.name,
                    "machine_type": each.machine.machine_type,
                    "spot": each.machine.spot,
                    "zone": zone,
                    "on_demand_usd_per_hour": usd_per_hour(on_demand, zone),
                    "spot_usd_per_hour": usd_per_hour(spot, zone),
                    "at_most_usd": None if price is None else price * hours,
                }
            )
    return rows


def _facts(settings: Settings, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    from gce_backend.instance import lifetime_seconds
    from gce_backend.prices import price_date

    machine, gce = settings.machine, settings.gce
    seconds = lifetime_seconds(settings)
    worst = [row["at_most_usd"] for row in rows]
    most = "not known: a zone's price is not in the table"
    if None not in worst:
        most = f"{usd(max(worst))}, in the dearest zone until the deadline"
    gpus = f", {machine.gpus} GPU" if machine.gpus else ""
    return [
        ("machine", f"{machine.name} ({machine.machine_type}{gpus}), {_model(machine.spot)}"),
        ("disk", f"{machine.disk_gb} GB {machine.disk_type}"),
        ("image", machine.image),
        ("project", settings.project),
        ("bucket", f"gs://{settings.bucket}/{gce.prefix}"),
        ("training ends", f"after {gce.max_hours:.3g} h at most (gce.max_hours)"),
        ("deadline", f"{moment(time.time() + seconds)} if started now: {seconds / 3600:.3g} h"),
        ("costs at most", most),
        ("prices", f"an estimate: list prices of {price_date()}, without discounts and network"),
    ]


def _model(spot: bool) -> str:
    return "spot" if spot else "on demand"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['machine']}{' spot' if row['spot'] else ''}",
        row["zone"],
        *(_price(row[f"{model}_usd_per_hour"]) for model in ("on_demand", "spot")),
        usd(row["at_most_usd"]),
    ]


def _price(amount: float | None) -> str:
    return "?" if amount is None else f"${amount:.4f}"


def _as_json(settings: Settings, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from gce_backend.instance import lifetime_seconds
    from gce_backend.prices import price_date

    return {
        "machine": settings.machine.name,
        "spot": settings.machine.spot,
        "project": settings.project,
        "bucket": settings.bucket,
        "max_hours": settings.gce.max_hours,
        "lifetime_seconds": lifetime_seconds(settings),
        "price_date": price_date(),
        "estimates": rows,
    }
