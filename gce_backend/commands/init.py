"""``mlflow-gce init``: ``conf/`` for an existing MLproject, and what it needs in the cloud."""

from __future__ import annotations

import os
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
@click.option("--bucket", envvar="MLFLOW_GCE_BUCKET", help="Bucket for results.")
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
    shown before it is made, and none is made without a yes. What exists is left as it is, so the
    command may be repeated.

    The exit code is 1 when a call that was wanted could not be made.
    """
    from gce_backend.config import check_project
    from gce_backend.place import configured_here
    from gce_backend.preparation import bucket_name, write_conf

    if not (directory / "MLproject").is_file():
        click.echo(
            f"mlflow-gce: {directory} has no MLproject file; conf/ belongs beside one", err=True
        )
        sys.exit(1)
    there = {key: configured_here(key, directory) for key in ("project", "bucket")}
    project = project or there["project"] or click.prompt("Google Cloud project")
    assert project
    given = bucket or there["bucket"] or click.prompt("bucket", default=f"{project}-mlflow")
    guarded(lambda: check_project(project))
    name = guarded(lambda: bucket_name(given))
    written = guarded(lambda: write_conf(directory, project, name))
    _tell(written, wanted={"project": project, "bucket": name}, there=there)
    failed = [] if no_cloud else _offer_all(project, name, region, yes=yes)
    if failed:
        click.echo(
            f"\nmlflow-gce: {len(failed)} of these calls could not be made:\n"
            + "\n".join(f"  {call}" for call in failed)
            + "\nWhen what is said above is mended, run mlflow-gce init again",
            err=True,
        )
        sys.exit(1)
    click.echo("next: mlflow-gce doctor")


def _tell(written: list[Path], *, wanted: dict[str, str], there: dict[str, str | None]) -> None:
    for path in written:
        click.echo(f"written: {path}")
    if not written:
        click.echo("conf/ is there already, and was left as it is")
    for key, value in wanted.items():
        if there[key] not in (None, value):
            click.echo(
                f"mlflow-gce: conf/gce/default.yaml names the {key} {there[key]}, and runs go "
                f"there, not to {value}",
                err=True,
            )


def _offer_all(project: str, bucket: str, region: str, *, yes: bool) -> list[Call]:
    """Offer every call; those that were wanted and could not be made."""
    from gce_backend.preparation import account_email, cloud_calls

    failed, declined = [], []
    calls = cloud_calls(project, bucket, region)
    for call in calls:
        click.echo(f"\n{call.purpose}:\n  {call}")
        if not yes and not click.confirm("make this call?", default=False):
            click.echo("not made")
            declined.append(call)
        elif not _made(call):
            failed.append(call)
    if not [call for call in (*failed, *declined) if call.for_account]:
        click.echo(
            "\nto give that account to instances, set in conf/gce/default.yaml:\n"
            f"  service_account: {account_email(project)}"
        )
    return failed


def _made(call: Call) -> bool:
    """Make a call; whether what it is to create is there now."""
    from gce_backend.errors import GceBackendError

    if call.make is not None:
        try:
            click.echo("done" if call.make() else "it exists already, and you can use it")
            return True
        except GceBackendError as error:
            click.echo(f"mlflow-gce: {error}", err=True)
            return False
    program = shutil.which(call.words[0])
    if program is None:
        click.echo("gcloud is not installed here: run it where it is, or in Cloud Shell", err=True)
        return False
    # Without prompts: what gcloud says is read, to tell what exists from what failed.
    environ = {**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    done = subprocess.run(
        [program, *call.words[1:]], check=False, env=environ, stderr=subprocess.PIPE, text=True
    )
    click.echo(done.stderr, err=True, nl=False)
    if done.returncode == 0:
        return True
    if "already exists" in done.stderr:
        click.echo("it exists already, and was left as it is")
        return True
    click.echo(f"mlflow-gce: gcloud ended with {done.returncode}; its message is above", err=True)
    return False
