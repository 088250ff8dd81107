"""``mlflow-gce doctor``: is everything there that a run needs?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.lines import print_json
from gce_backend.commands.options import JSON, TRACKING_URI
from gce_backend.commands.settings import run_options, settings_of_run
from gce_backend.commands.tables import styled

if TYPE_CHECKING:
    from gce_backend.doctor import Doctor
    from gce_backend.finding import Finding

_COLOURS = {"ok": "green", "FAILED": "red", "warning": "yellow", "inferred": "cyan"}


@click.command()
@click.argument(
    "directory", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@run_options
@TRACKING_URI
@click.option("--probe", is_flag=True, help="Start one small instance to find out the rest.")
@click.option("--yes", "-y", is_flag=True, help="Start it without asking.")
@JSON
@looking_around
def doctor(
    directory: Path,
    entry_point: str,
    parameters: dict[str, str],
    tracking_uri: str | None,
    probe: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Check everything that a run needs, and say the command that mends what is amiss.

    For the configuration of the project in DIRECTORY: credentials, project, permissions, service
    account, bucket, image, machine, quota, network, tracking store. It creates one small object in
    the bucket and deletes it, and starts nothing. What only an instance can find out is called
    inferred; with --probe one small instance finds it out, after you were asked, and is deleted.

    The exit code is 1 when something failed.
    """
    examination = guarded(lambda: _doctor(directory, entry_point, parameters, tracking_uri))
    findings: list[Finding] = []

    def tell(found: Iterable[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            if not as_json:
                _print(finding)

    tell(examination.examine())
    left = ""
    if probe:
        left = _probe(examination, findings, tell, yes=yes)
    else:
        tell(matter.inferred() for matter in examination.matters)
    if as_json:
        print_json([{**vars(each), "state": each.state.value} for each in findings])
    sys.exit(1 if left or any(each.state.value == "FAILED" for each in findings) else 0)


def _print(finding: Finding) -> None:
    state = finding.state.value
    mark = styled(f"{state:<8}", fg=_COLOURS.get(state), bold=state == "FAILED")
    click.echo(f"{mark}  {finding.name}: {finding.detail}")
    if finding.remedy and state in ("FAILED", "warning"):
        for line in finding.remedy.splitlines():
            click.echo(f"            {line}")


def _probe(
    examination: Doctor,
    findings: list[Finding],
    tell: Callable[[Iterable[Finding]], None],
    *,
    yes: bool,
) -> str:
    """Start the instance, if it may be; what may still bill afterwards, "" for nothing."""
    from gce_backend.probe import Interrupted
    from gce_backend.probe_findings import FIRST

    amiss = [each.name for each in findings if each.state.value in ("FAILED", "skipped")]
    if first := next((name for name in FIRST if name in amiss), None):
        tell(matter.skipped(first) for matter in examination.matters)
        return ""
    probe = guarded(lambda: examination.probe(lambda text: click.echo(text, err=True)))
    click.echo(f"to find out the rest: {probe.offer()}", err=True)
    if not yes and not click.confirm("start it?", err=True):
        tell(matter.inferred() for matter in examination.matters)
        return ""
    try:
        answers = guarded(probe.run)
    except Interrupted as left:
        sys.exit(left.exit_code)
    tell(matter.answered(answers) for matter in examination.matters)
    return probe.left


def _doctor(
    directory: Path, entry_point: str, parameters: dict[str, str], tracking_uri: str | None
) -> Doctor:
    """For a run; where there is no project yet, for the configuration alone."""
    from gce_backend.config import is_backend_parameter, load_settings
    from gce_backend.doctor import Doctor
    from gce_backend.tracking import resolve_uri

    if (directory / "MLproject").is_file() or not all(map(is_backend_parameter, parameters)):
        settings = settings_of_run(directory, entry_point, parameters, tracking_uri=tracking_uri)
    else:
        settings = load_settings(directory, parameters=parameters)
    return Doctor(settings, resolve_uri(tracking_uri))
