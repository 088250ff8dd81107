"""Dated lines: what a command says of each thing it did, on a terminal as in cron's log."""

from __future__ import annotations

import json
import time
from typing import Any

import click


def dated(text: str, *, at: float | None = None) -> str:
    """``text`` behind the local time."""
    return f"{moment(time.time() if at is None else at)}  {text}"


def moment(at: float) -> str:
    """Unix seconds as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def say(text: str) -> None:
    click.echo(dated(text))


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))
