"""Tables: drawn by rich on a terminal, tab-separated plain text into a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Column:
    """Args:
    right: numbers stand under each other.
    keep: never shortened on a narrow terminal.
    """

    title: str
    right: bool = False
    keep: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """``rows``: one cell for each column; the first word of a cell may carry a mark such as ``!``.

    A pipe gets one line a row, cells separated by tabs, no header shortened and no colour.
    """
    if not sys.stdout.isatty():
        click.echo("\t".join(column.title for column in columns))
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis" if not column.keep else "fold",
        )
    for row in rows:
        style = "bold red" if any(cell.startswith("!") for cell in row) else ""
        table.add_row(*(Text(cell) for cell in row), style=style)
    Console(highlight=False).print(table)


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """A titled list of names and values, the values in one column; long ones are not cut."""
    click.secho(title, bold=True)
    width = max((len(name) for name, _ in facts), default=0) + 1
    for name, value in facts:
        first, *rest = value.splitlines() or [""]
        click.echo(f"  {f'{name}:':<{width}} {first}".rstrip())
        for line in rest:
            click.echo(f"  {'':<{width}} {line}")


def duration(seconds: float) -> str:
    """As people say it: ``45 s``, ``12 min``, ``3.2 h``, ``4 d``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d"


def usd(amount: float | None) -> str:
    if amount is None:
        return "?"
    return f"${amount:.2f}" if amount >= 0.1 else f"${amount:.4f}"


def size(count: float) -> str:
    """Bytes, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
