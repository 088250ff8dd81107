"""``mlflow-gce reap``: delete what outlived its run; safe to run from cron."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from gce_backend.commands.answering import guarded
from gce_backend.commands.lines import print_json, say
from gce_backend.commands.options import JSON, PROJECT
from gce_backend.place import find_place

if TYPE_CHECKING:
    from gce_backend.reaper import Outcome


@click.command()
@PROJECT
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--mine", is_flag=True, help="Only the instances that you started.")
@click.option(
    "--collect",
    is_flag=True,
    help="Boot instances again that stopped before they had saved everything, or that have been "
    "silent for 15 minutes (once): a training goes on from its last checkpoint.",
)
@JSON
def reap(project: str | None, dry_run: bool, mine: bool, collect: bool, as_json: bool) -> None:
    """Delete instances whose results are verified, or whose deadline has passed; no others.

    Looks at every instance of this product in all zones of the project. One whose results are not
    proven to be in the bucket stays until its deadline, and so does one that is silent: both are
    reported, with the command that looks further.

    The exit code is 1 when something could not be read or deleted.
    """
    outcomes = guarded(lambda: _reaped(project, dry_run, mine, collect, quiet=as_json))
    if as_json:
        print_json([_as_json(outcome, dry_run) for outcome in outcomes])
    else:
        _summarize(outcomes, dry_run)
    if any(outcome.error for outcome in outcomes):
        sys.exit(1)


def _reaped(
    project: str | None, dry_run: bool, mine: bool, collect: bool, *, quiet: bool
) -> list[Outcome]:
    from gce_backend.instance import owner_label
    from gce_backend.reaper import Reaper

    place = find_place(project)
    reaper = Reaper(place.project, endpoint=place.endpoints.compute)
    outcomes = []
    owner = owner_label() if mine else None
    for outcome in reaper.run(owner=owner, dry_run=dry_run, collect=collect):
        outcomes.append(outcome)
        if not quiet:
            say(describe(outcome, dry_run=dry_run))
    return outcomes


def describe(outcome: Outcome, *, dry_run: bool = False) -> str:
    """What was done about an instance and why, and the command that looks further."""
    here, verdict = outcome.instance, outcome.verdict
    name = f"{here.name} ({here.zone}, {here.owner or 'no owner'})"
    if outcome.deed == "deleted":
        return f"{name}  deleted: {verdict.why}; GET says 404"
    if outcome.deed == "started":
        return f"{name}  started again, to collect its results: it was {verdict.why}"
    if outcome.deed == "reset":
        return f"{name}  reset, to collect its results: {verdict.why}"
    if verdict.deletes and dry_run:
        return f"{name}  would be deleted: {verdict.why}"
    if verdict.deletes:
        delete = f"gcloud compute instances delete {here.where}"
        return f"{name}  NOT deleted, though {verdict.why}: {outcome.error}. Run:\n  {delete}"
    if verdict.fate.value == "working":
        return f"{name}  left alone: it {verdict.why}"
    what = f"{name}  {verdict.fate.value}: {outcome.error or verdict.why}"
    return f"{what}. See:\n  {verdict.command}" if verdict.command else what


def _summarize(outcomes: list[Outcome], dry_run: bool) -> None:
    deeds = Counter(outcome.deed for outcome in outcomes)
    due = sum(1 for outcome in outcomes if outcome.verdict.deletes)
    failed = sum(1 for outcome in outcomes if outcome.error)
    done = f"{due} would be deleted" if dry_run else f"{deeds['deleted']} deleted"
    parts = [f"{len(outcomes)} instances", done]
    if again := deeds["started"] + deeds["reset"]:
        parts.append(f"{again} booted again")
    if failed:
        parts.append(f"{failed} could not be read or dealt with")
    say(", ".join(parts))


def _as_json(outcome: Outcome, dry_run: bool) -> dict[str, Any]:
    here, verdict = outcome.instance, outcome.verdict
    return {
        "instance": here.name,
        "zone": here.zone,
        "project": here.project,
        "run_id": here.run_id,
        "owner": here.owner,
        "status": here.status,
        "deadline": here.deadline,
        "verdict": verdict.fate.value,
        "why": verdict.why,
        "command": verdict.command,
        "deed": "would delete" if dry_run and verdict.deletes else outcome.deed,
        "error": outcome.error,
    }
