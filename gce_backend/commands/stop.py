"""``mlflow-gce stop``: end a run."""

from __future__ import annotations

import click

from gce_backend.commands.answering import guarded
from gce_backend.commands.following import followed, open_runner
from gce_backend.commands.options import RUN, TRACKING_URI


@click.command()
@RUN
@TRACKING_URI
@click.option("--now", is_flag=True, help="Delete the instance at once; unsaved results are lost.")
def stop(run: str, tracking_uri: str | None, now: bool) -> None:
    """End RUN: save its results, mark it KILLED, delete its instance.

    The exit code is 0 once a GET said 404 for the instance, and the run's if it had failed before.
    """
    from gce_backend.lifecycle import EndReason

    if now:
        guarded(lambda: open_runner(run, tracking_uri).delete_now())
        return
    followed(
        run,
        tracking_uri,
        lambda runner, interrupts: runner.cancel(interrupts),
        successes=(EndReason.CANCELLED, EndReason.SUCCEEDED),
    )
