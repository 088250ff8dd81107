"""``mlflow-gce sync``: journals in the bucket, applied to the MLflow store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.lines import print_json
from gce_backend.commands.options import JSON, TRACKING_URI

if TYPE_CHECKING:
    from gce_backend.submission import Submission


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@TRACKING_URI
@click.option("--all", "-a", "all_runs", is_flag=True, help="Every run that the store lacks of.")
@JSON
@looking_around
def sync(runs: tuple[str, ...], tracking_uri: str | None, all_runs: bool, as_json: bool) -> None:
    """Bring what each RUN has logged so far from the bucket into the MLflow store.

    Metrics, parameters, tags, models, and how the run ended. Doing it again changes nothing.

    The exit code is 1 when a run could not be brought up to date; the others are.
    """
    if bool(runs) == all_runs:
        raise click.UsageError("name the runs to bring up to date, or say --all")
    chosen = guarded(lambda: _chosen(runs, tracking_uri))
    from gce_backend.backlog import warn
    from gce_backend.catch_up import sync_runs
    from gce_backend.config import read_endpoints
    from gce_backend.console import Console
    from gce_backend.last_look import remember
    from gce_backend.tracking import Tracking, resolve_uri

    done = []
    console = Console(quiet=as_json)
    for each in sync_runs(chosen, endpoints=guarded(read_endpoints), console=console):
        done.append(each)
        if each.error:
            click.echo(f"mlflow-gce: run {each.run_id}: {each.error}", err=True)
        elif not as_json:
            refused = f", {each.refused} not accepted" if each.refused else ""
            click.echo(
                f"run {each.run_id}: the store has all that is in the bucket "
                f"({each.records} new records{refused})"
            )
    if as_json:
        print_json([vars(each) for each in done])
    elif not done:
        click.echo("the store has all that is in the buckets")
    remember(tracking_uri, "")  # what the last look found is no longer so
    if runs and not as_json:
        warn(Tracking(resolve_uri(tracking_uri)), console)
    sys.exit(1 if any(each.error for each in done) else 0)


def _chosen(runs: tuple[str, ...], tracking_uri: str | None) -> list[Submission]:
    from gce_backend.backlog import unsynced_runs
    from gce_backend.run_finder import find_submission
    from gce_backend.tracking import Tracking, resolve_uri

    if runs:
        return [find_submission(run, tracking_uri) for run in runs]
    return unsynced_runs(Tracking(resolve_uri(tracking_uri)), by_the_way=False)
