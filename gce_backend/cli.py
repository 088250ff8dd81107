"""The command ``mlflow-gce``: come back to a run, end it, bring its metrics home; the emulator.

Nothing heavy is imported before a command needs it: ``mlflow-gce --help`` must be quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gce_backend.emulator.command import emulator

if TYPE_CHECKING:
    from gce_backend.interrupts import Interrupts
    from gce_backend.runner import Result, Runner


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-gce")
def main() -> None:
    """Train MLflow projects on ephemeral Compute Engine instances.

    Runs are started with MLflow itself: mlflow run . --backend gce -P epochs=10
    """


main.add_command(emulator)

_RUN = click.argument("run", metavar="RUN")
_TRACKING_URI = click.option(
    "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow store; MLflow's own by default."
)


@main.command()
@_RUN
@_TRACKING_URI
def attach(run: str, tracking_uri: str | None) -> None:
    """Follow RUN again, from the beginning of its log to its end.

    RUN is an MLflow run id, or its first characters. The exit code is the run's.
    """
    _followed(run, tracking_uri, lambda runner, interrupts: runner.follow(interrupts))


@main.command()
@_RUN
@_TRACKING_URI
@click.option("--now", is_flag=True, help="Delete the instance at once; unsaved results are lost.")
def stop(run: str, tracking_uri: str | None, now: bool) -> None:
    """End RUN: save its results, mark it KILLED, delete its instance.

    The exit code is 0 once a GET said 404 for the instance, and the run's if it had failed before.
    """
    from gce_backend.lifecycle import EndReason

    if now:
        _guarded(lambda: _runner(run, tracking_uri).delete_now())
        return
    _followed(
        run,
        tracking_uri,
        lambda runner, interrupts: runner.cancel(interrupts),
        successes=(EndReason.CANCELLED, EndReason.SUCCEEDED),
    )


@main.command()
@_RUN
@_TRACKING_URI
def sync(run: str, tracking_uri: str | None) -> None:
    """Bring what RUN has logged so far from the bucket into the MLflow store."""
    runner = _guarded(lambda: _runner(run, tracking_uri))
    _guarded(runner.sync)
    click.echo(f"run {runner.submission.run_id}: the store has all that is in the bucket")


def _followed(
    run: str,
    tracking_uri: str | None,
    follow: Callable[[Runner, Interrupts], Result],
    successes: tuple[Any, ...] = (),
) -> None:
    from gce_backend.interrupts import Detached, Interrupts

    def work() -> Result:
        runner = _runner(run, tracking_uri)
        with Interrupts() as interrupts:
            return follow(runner, interrupts)

    try:
        result = _guarded(work)
    except Detached as left:
        click.echo(f"mlflow-gce: {left}", err=True)
        sys.exit(left.exit_code)
    if result.exit_code and result.reason not in successes:
        click.echo(f"mlflow-gce: {result.message}", err=True)
        sys.exit(result.exit_code)


def _runner(run: str, tracking_uri: str | None) -> Runner:
    from gce_backend.config import read_endpoints
    from gce_backend.console import Console
    from gce_backend.runner import Runner
    from gce_backend.submission import Submission
    from gce_backend.tracking import Tracking, resolve_uri

    uri = resolve_uri(tracking_uri)
    found = Tracking(uri).find_run(run)
    return Runner(Submission.from_run(found, uri), endpoints=read_endpoints(), console=Console())


def _guarded(work: Callable[[], Any]) -> Any:
    """``work()``, with our errors as one message and exit code 1 instead of a traceback."""
    from gce_backend.errors import GceBackendError
    from gce_backend.interrupts import Detached

    try:
        return work()
    except Detached:
        raise
    except GceBackendError as error:
        click.echo(f"mlflow-gce: {error}", err=True)
        sys.exit(1)
