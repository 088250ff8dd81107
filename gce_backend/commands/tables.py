"""Tables and facts: laid out for the width of a terminal, tab-separated into a pipe."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """Args:
    right: numbers stand under each other.
    drop: on a terminal that is too narrow, the columns with the highest go first; 0 stays.
    """

    title: str
    right: bool = False
    drop: int = 0


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()
) -> None:
    """``rows``: one cell for each column.

    Args:
        marked: rows to show in red.

    A pipe gets one line a row, its cells separated by tabs, whole.
    """
    if not sys.stdout.isatty():
        for row in [[column.title for column in columns], *rows]:
            click.echo("\t".join(row))
        return
    widths = [
        max(len(cell) for cell in cells)
        for cells in zip([column.title for column in columns], *rows, strict=True)
    ]
    shown = _fitting(columns, widths, shutil.get_terminal_size().columns)
    titles = [column.title for column in columns]
    click.echo(styled(_line(titles, columns, widths, shown), bold=True))
    for number, row in enumerate(rows):
        line = _line(row, columns, widths, shown)
        is_marked = number < len(marked) and marked[number]
        click.echo(styled(line, fg="red") if is_marked else line)


def _fitting(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """The columns that have room, by number."""
    shown = list(range(len(columns)))
    droppable = sorted((n for n in shown if columns[n].drop), key=lambda n: -columns[n].drop)
    for number in droppable:
        if sum(widths[n] for n in shown) + len(_GAP) * (len(shown) - 1) <= room:
            break
        shown.remove(number)
    return shown


def _line(
    cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int]
) -> str:
    padded = (
        cells[n].rjust(widths[n]) if columns[n].right else cells[n].ljust(widths[n]) for n in shown
    )
    return _GAP.join(padded).rstrip()


def styled(text: str, **style: Any) -> str:
    """``text`` in that style, unless https://no-color.org asks for none."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """A titled list of names and values, the values in one column; long ones are not cut."""
    click.echo(styled(title, bold=True))
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
