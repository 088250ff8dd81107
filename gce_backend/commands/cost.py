"""``mlflow-gce cost``: what runs have cost, by list price."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.lines import moment, print_json
from gce_backend.commands.options import JSON, TRACKING_URI
from gce_backend.commands.tables import Column, duration, print_table, usd

if TYPE_CHECKING:
    from gce_backend.run_finder import RunRecord

_MOST = 10_000
_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
_COLUMNS = [
    Column("RUN"),
    Column("NAME"),
    Column("STARTED", drop=1),
    Column("MACHINE", drop=2),
    Column("STATUS"),
    Column("TIME", right=True),
    Column("COST", right=True),
]


def _moment(_: click.Context, __: click.Parameter, text: str) -> float:
    """``30d``, ``12h``, ``2w``, or a date as in ``2026-11-01``; unix seconds."""
    if match := re.fullmatch(r"(\d+)([hdw])", text):
        return time.time() - int(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise click.BadParameter(f"{text!r}: say 12h, 30d, 2w, or a date: 2026-11-01") from None


@click.command()
@TRACKING_URI
@click.option(
    "--since", default="30d", show_default=True, callback=_moment, help="12h, 30d, 2w, or a date."
)
@JSON
@looking_around
def cost(tracking_uri: str | None, since: float, as_json: bool) -> None:
    """Sum up what the store's runs have cost since a day: an estimate by list price.

    What still runs counts to this moment. Storage, network and discounts are not in it; the bill
    is at https://console.cloud.google.com/billing.
    """
    from gce_backend.prices import price_date
    from gce_backend.run_finder import latest_runs

    runs = guarded(lambda: latest_runs(tracking_uri, _MOST, since=since))
    costs = [_cost(run) for run in runs]
    total = sum(amount for amount in costs if amount is not None)
    unknown = costs.count(None)
    if as_json:
        pairs = zip(runs, costs, strict=True)
        print_json(
            {
                "since": since,
                "price_date": price_date(),
                "estimated_usd": total,
                "runs_without_a_price": unknown,
                "runs": [{**vars(run), "cost_usd": amount} for run, amount in pairs],
            }
        )
        return
    if runs:
        rows = [_cells(run, amount) for run, amount in zip(runs, costs, strict=True)]
        print_table(_COLUMNS, rows)
    missing = f", {unknown} runs of unknown price not counted" if unknown else ""
    click.echo(
        f"{len(runs)} runs since {moment(since)}: about {usd(total)} "
        f"(estimate by list prices of {price_date()}{missing})"
    )


def _cost(run: RunRecord) -> float | None:
    from gce_backend.prices import Price

    if run.cost_usd is not None or run.usd_per_hour is None:
        return run.cost_usd
    return Price(run.usd_per_hour).cost(time.time() - run.created_at)


def _cells(run: RunRecord, amount: float | None) -> list[str]:
    return [
        run.run_id[:8],
        run.name,
        moment(run.created_at)[:16],
        run.machine_type,
        run.end_reason or run.status.lower(),
        duration((run.ended_at or time.time()) - run.created_at),
        usd(amount),
    ]
