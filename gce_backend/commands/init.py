"""``mlflow-gce init``: ``conf/`` for an existing MLproject, and what it needs in the cloud."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gce_backend.commands.answering import guarded

if TYPE_CHECKING:
    from gce_backend.preparation import Call


@click.command()
@click.argument(
    "directory", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--project", envvar="GOOGLE_CLOUD_PROJECT", help="Google Cloud project.")
@click.option("--bucket", envvar="MLFLOW_GCE_BUCKET", help="Bucket for results, without gs://.")
@click.option("--region", default="europe-west1", show_default=True, help="Of the bucket.")
@click.option("--yes", "-y", is_flag=True, help="Make every call without asking.")
@click.option("--no-cloud", is_flag=True, help="Only write conf/.")
def init(
    directory: Path,
    project: str | None,
    bucket: str | None,
    region: str,
    yes: bool,
    no_cloud: bool,
) -> None:
    """Write conf/ for the MLproject in DIRECTORY, and offer to create what it needs in the cloud.

    The bucket, a service account with the least roles, and a firewall rule for SSH: every call is
    shown before it is made, and none is made without a yes. Files that exist are left.
    """
    from gce_backend.preparation import account_email, cloud_calls, write_conf

    if not (directory / "MLproject").is_file():
        click.echo(
            f"mlflow-gce: {directory} has no MLproject file; conf/ belongs beside one", err=True
        )
        sys.exit(1)
    project = project or click.prompt("Google Cloud project")
    bucket = bucket or click.prompt("bucket", default=f"{project}-mlflow")
    assert project and bucket
    written = guarded(lambda: write_conf(directory, project, bucket))
    for path in written:
        click.echo(f"written: {path}")
    if not written:
        click.echo("conf/ is there already, and was left as it is")
    if not no_cloud:
        for call in cloud_calls(project, bucket, region):
            _offer(call, yes=yes)
        click.echo(
            "\nto give that account to instances, set in conf/gce/default.yaml:\n"
            f"  service_account: {account_email(project)}"
        )
    click.echo("next: mlflow-gce doctor")


def _offer(call: Call, *, yes: bool) -> None:
    """Show a call, and make it when it is wanted."""
    click.echo(f"\n{call.purpose}:\n  {call}")
    if not yes and not click.confirm("make this call?", default=False):
        click.echo("not made")
        return
    if call.make is not None:
        guarded(call.make)
        click.echo("done")
        return
    program = shutil.which(call.words[0])
    if program is None:
        click.echo("gcloud is not installed here: run it where it is, or in Cloud Shell", err=True)
        return
    done = subprocess.run([program, *call.words[1:]], check=False)
    if done.returncode:
        click.echo(
            f"mlflow-gce: gcloud ended with {done.returncode}; its message is above", err=True
        )
