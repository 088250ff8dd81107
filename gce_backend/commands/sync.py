"""``mlflow-gce sync``: the journal in the bucket, applied to the MLflow store."""

from __future__ import annotations

import click

from gce_backend.commands.answering import guarded
from gce_backend.commands.following import open_runner
from gce_backend.commands.options import RUN, TRACKING_URI


@click.command()
@RUN
@TRACKING_URI
def sync(run: str, tracking_uri: str | None) -> None:
    """Bring what RUN has logged so far from the bucket into the MLflow store."""
    runner = guarded(lambda: open_runner(run, tracking_uri))
    guarded(runner.sync)
    click.echo(f"run {runner.submission.run_id}: the store has all that is in the bucket")
