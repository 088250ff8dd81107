"""How a command tells what went wrong: our errors as one message, never as a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import click

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
