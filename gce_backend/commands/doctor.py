"""``mlflow-gce doctor``: is everything there that a run needs?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gce_backend.commands.answering import guarded
from gce_backend.commands.lines import print_json
from gce_backend.commands.options import JSON, TRACKING_URI
from gce_backend.commands.settings import PARAMETERS, backend_parameters
from gce_backend.commands.tables import styled

if TYPE_CHECKING:
    from gce_backend.doctor import Doctor

_COLOURS = {"ok": "green", "FAILED": "red", "warning": "yellow", "inferred": "cyan"}


@click.command()
@click.argument(
    "directory", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@PARAMETERS
@TRACKING_URI
@JSON
def doctor(
    directory: Path, parameters: tuple[str, ...], tracking_uri: str | None, as_json: bool
) -> None:
    """Check everything that a run needs, and say the command that mends what is amiss.

    For the configuration of the project in DIRECTORY: credentials, project, permissions, service
    account, bucket, image, machine, quota, network, tracking store. It creates one small object in
    the bucket and deletes it, and starts nothing. What only an instance can find out is called
    inferred.

    The exit code is 1 when something failed.
    """
    examination = guarded(lambda: _doctor(directory, parameters, tracking_uri))
    findings = []
    for finding in examination.examine():
        findings.append(finding)
        if as_json:
            continue
        state = finding.state.value
        mark = styled(f"{state:<8}", fg=_COLOURS.get(state), bold=state == "FAILED")
        click.echo(f"{mark}  {finding.name}: {finding.detail}")
        if finding.remedy and state in ("FAILED", "warning"):
            for line in finding.remedy.splitlines():
                click.echo(f"            {line}")
    if as_json:
        print_json([{**vars(each), "state": each.state.value} for each in findings])
    sys.exit(1 if any(each.state.value == "FAILED" for each in findings) else 0)


def _doctor(directory: Path, parameters: tuple[str, ...], tracking_uri: str | None) -> Doctor:
    from gce_backend.config import load_settings
    from gce_backend.doctor import Doctor
    from gce_backend.tracking import resolve_uri

    settings = load_settings(directory, parameters=backend_parameters(parameters))
    return Doctor(settings, resolve_uri(tracking_uri))
