"""``mlflow-gce attach``: come back to a run."""

from __future__ import annotations

import click

from gce_backend.commands.following import followed, followed_sweep
from gce_backend.commands.options import RUN, TRACKING_URI


@click.command()
@RUN
@TRACKING_URI
def attach(run: str, tracking_uri: str | None) -> None:
    """Follow RUN again, from the beginning of its log to its end.

    RUN is an MLflow run id, its first characters, or the run's name. The exit code is the run's.
    Of a sweep, by its whole id, all jobs that run are followed.
    """
    followed_sweep(run, tracking_uri)
    followed(run, tracking_uri, lambda runner, interrupts: runner.follow(interrupts))
