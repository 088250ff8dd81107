"""How a command begins and ends: a quick look around, and our errors as one message."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

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


def looking_around(command: Callable[..., T]) -> Callable[..., T]:
    """The command of a run or project, begun with the quick look; it goes by the options' names."""

    @functools.wraps(command)
    def begun(*arguments: Any, **options: Any) -> T:
        look_around(
            options.get("project"),
            except_run=options.get("run") or "",
            store=options.get("tracking_uri") or "",
        )
        return command(*arguments, **options)

    return begun


def look_around(project: str | None, *, except_run: str = "", store: str = "") -> None:
    """Look in the background at the caller's own finished instances, and for unsynced runs.

    What the last look found in the store is told at once: most commands end before a new one does.
    """
    from gce_backend.glance import SWITCH, glance
    from gce_backend.last_look import recall

    def say(text: str) -> None:
        click.echo(f"mlflow-gce: {text}", err=True)

    if os.environ.get(SWITCH, "").lower() in ("false", "0"):
        return
    notice, age = recall(store)
    if notice:
        say(f"{notice} (as of {age / 60:.0f} min ago)")
    glance(project, say=say, except_run=except_run, store=store)
