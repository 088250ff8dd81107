"""``mlflow-gce ps``: what exists, and what it costs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.lines import print_json
from gce_backend.commands.options import JSON, PROJECT, TRACKING_URI
from gce_backend.commands.tables import Column, duration, print_table, usd
from gce_backend.place import Place, find_place

if TYPE_CHECKING:
    from gce_backend.overview import Standing

_COLUMNS = [
    Column("RUN"),
    Column("NAME"),
    Column("PHASE"),
    Column("MACHINE", drop=3),
    Column("ZONE", drop=2),
    Column("AGE", right=True),
    Column("DEADLINE", right=True, drop=1),
    Column("COST", right=True),
]
_NOTE = Column("NOTE")
_ENDED_SHOWN = 20


@click.command()
@PROJECT
@TRACKING_URI
@click.option("--all", "-a", "ended_too", is_flag=True, help="The store's last runs as well.")
@click.option("--mine", is_flag=True, help="Only what you started.")
@JSON
@looking_around
def ps(
    project: str | None, tracking_uri: str | None, ended_too: bool, mine: bool, as_json: bool
) -> None:
    """List the instances and their runs: phase, age, deadline, and cost so far.

    COST is an estimate by list price. A NOTE marks what needs a look: orphans, which should be
    gone, results that could not be verified, instances that are silent.
    """
    place = guarded(lambda: find_place(project))
    shown = guarded(lambda: _standings(place, mine))
    rows = [_as_json(each) for each in shown]
    if ended_too:
        known = {row["run_id"] for row in rows}
        rows += [row for row in guarded(lambda: _ended(tracking_uri)) if row["run_id"] not in known]
    if as_json:
        print_json(rows)
    elif rows:
        _print(rows)
    else:
        click.echo(f"no instances of mlflow-gce exist in project {place.project}")


def _standings(place: Place, mine: bool) -> list[Standing]:
    from gce_backend.instance import owner_label
    from gce_backend.overview import standings

    owner = owner_label() if mine else None
    return standings(place.project, endpoint=place.endpoints.compute, owner=owner)


def _ended(tracking_uri: str | None) -> list[dict[str, Any]]:
    """The last runs of this backend in the store, whose instances are gone."""
    from gce_backend.run_finder import latest_runs

    return [
        {
            "run_id": run.run_id,
            "name": run.name,
            "phase": run.end_reason or run.status.lower(),
            "machine": run.machine_type,
            "zone": run.zone,
            "instance": run.instance,
            "age": time.time() - run.created_at,
            "deadline": None,
            "cost_usd": run.cost_usd,
            "orphan": False,
            "note": "" if run.is_over else "its instance is gone, its end not in the store",
            "command": "" if run.is_over else f"mlflow-gce sync {run.run_id}",
        }
        for run in latest_runs(tracking_uri, _ENDED_SHOWN)
    ]


def _as_json(each: Standing) -> dict[str, Any]:
    here = each.instance
    return {
        "run_id": here.run_id,
        "name": here.run_name,
        "attempt": here.attempt,
        "phase": each.phase,
        "machine": f"{here.machine_type}{' spot' if here.spot else ''}",
        "zone": here.zone,
        "instance": here.name,
        "status": here.status,
        "owner": here.owner,
        "age": round(each.age, 1),
        "deadline": here.deadline,
        "usd_per_hour": here.usd_per_hour,
        "cost_usd": each.cost_usd,
        "orphan": each.is_orphan,
        "verdict": each.verdict.fate.value,
        "note": _note(each),
        "command": "mlflow-gce reap" if each.is_orphan else each.verdict.command,
    }


def _note(each: Standing) -> str:
    if each.is_orphan:
        return f"orphan: {each.verdict.why}"
    return "" if each.verdict.fate.value in ("working", "proven") else each.verdict.why


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["run_id"][:8],
        row["name"] or "-",
        row["phase"],
        row["machine"],
        row["zone"],
        duration(row["age"]),
        _left(row["deadline"]),
        usd(row["cost_usd"]),
    ]


def _left(deadline: float | None) -> str:
    if deadline is None:
        return "-"
    left = deadline - time.time()
    return f"in {duration(left)}" if left > 0 else "passed"


def _print(rows: list[dict[str, Any]]) -> None:
    """On a terminal, notes stand below the table, where there is room for them."""
    if not sys.stdout.isatty():
        print_table([*_COLUMNS, _NOTE], [[*_cells(row), row["note"]] for row in rows])
        return
    print_table(_COLUMNS, [_cells(row) for row in rows], [bool(row["note"]) for row in rows])
    for row in rows:
        if row["note"]:
            click.echo(f"{row['run_id'][:8]}: {row['note']}")
            if row.get("command"):
                click.echo(f"  {row['command']}")
