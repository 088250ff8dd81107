"""How a command begins and ends: a quick look around, and our errors as one message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from gce_backend.commands.place import Place

T = TypeVar("T")


def guarded(work: Callable[[], T]) -> T:
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


def look_around(place: Place, *, except_run: str = "") -> None:
    """Begin the quick look at the caller's own finished instances, in the background."""
    from gce_backend.glance import glance

    glance(
        place.project,
        say=lambda text: click.echo(f"mlflow-gce: {text}", err=True),
        except_run=except_run,
    )
