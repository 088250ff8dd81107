"""``mlflow-gce rescue``: a run's files straight off its instance."""

from __future__ import annotations

from pathlib import Path

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.options import DIRECTORY, RUN, TRACKING_URI
from gce_backend.commands.reaching import VIA, reach


@click.command()
@RUN
@DIRECTORY
@TRACKING_URI
@VIA
@looking_around
def rescue(run: str, directory: Path | None, tracking_uri: str | None, via: str | None) -> None:
    """Copy RUN's files straight off its instance into DIR, each checked by its SHA-256.

    For an instance that was kept because its results are not proven to be in the bucket. DIR is
    rescued/RUN by default; called again, it goes on where it stopped. In DIR: work/ is the
    training's directory, bucket/ what was on its way to the bucket, run.log the whole log.
    """
    from gce_backend.errors import SshError
    from gce_backend.rescue import rescue as fetch
    from gce_backend.run_finder import find_submission

    submission = guarded(lambda: find_submission(run, tracking_uri))
    target = directory or Path("rescued") / submission.run_id

    def work() -> str:
        with reach(submission, via) as connection:
            try:
                done = fetch(connection, target, lambda name: click.echo(f"  {name}"))
            except OSError as error:
                raise SshError(
                    f"cannot write into {target}: {error}. What has arrived is kept; name another "
                    "directory, or make room, and run the same command again"
                ) from error
        return (
            f"{done.files} files, {done.size / 1e6:.1f} MB ({done.transferred / 1e6:.1f} MB just "
            f"now), in {target}, each with the SHA-256 it has on the instance"
        )

    click.echo(guarded(work))
    click.echo(
        f"Instance {submission.instance!r} still exists, and bills until "
        f"{submission.deadline_text()} at the latest. To delete it, run:\n"
        f"  mlflow-gce stop --now {submission.run_id}"
    )
