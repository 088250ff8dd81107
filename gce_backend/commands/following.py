"""What ``attach`` and ``stop`` share: a run found again, and followed to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gce_backend.commands.answering import guarded, look_around

if TYPE_CHECKING:
    from gce_backend.interrupts import Interrupts
    from gce_backend.runner import Result, Runner


def followed(
    run: str,
    tracking_uri: str | None,
    follow: Callable[[Runner, Interrupts], Result],
    successes: tuple[Any, ...] = (),
) -> None:
    """Follow a run to its end and exit with its exit code, or as the signal that asked to leave."""
    from gce_backend.interrupts import Detached, Interrupts

    def work() -> Result:
        runner = open_runner(run, tracking_uri)
        with Interrupts() as interrupts:
            return follow(runner, interrupts)

    try:
        result = guarded(work)
    except Detached as left:
        click.echo(f"mlflow-gce: {left}", err=True)
        sys.exit(left.exit_code)
    if result.exit_code and result.reason not in successes:
        click.echo(f"mlflow-gce: {result.message}", err=True)
        sys.exit(result.exit_code)


def followed_sweep(run: str, tracking_uri: str | None) -> None:
    """Follow a sweep to its end and exit; come back where ``run`` is none."""
    from gce_backend.sweep.attach import attach_sweep

    code = guarded(lambda: attach_sweep(run, tracking_uri))
    if code is not None:
        sys.exit(code)


def open_runner(run: str, tracking_uri: str | None) -> Runner:
    """The runner of a run that the store knows by this id, its first characters, or this name."""
    from gce_backend.config import read_endpoints
    from gce_backend.console import Console
    from gce_backend.run_finder import find_submission
    from gce_backend.runner import Runner

    submission, endpoints = find_submission(run, tracking_uri), read_endpoints()
    look_around(submission.project, except_run=submission.run_id, store=tracking_uri or "")
    return Runner(submission, endpoints=endpoints, console=Console())
