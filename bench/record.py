"""A bench's figures: printed, and with RECORD=1 written into its section of bench/RESULTS.md.

A section holds the last figures of one script, with the day, the machine and the versions that
they were measured with. `make bench` sets RECORD.
"""

import datetime
import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Self

Say = Callable[[str], None]
RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """\
# Figures

Each section is the last output of one script in `bench/`; `make bench` runs them all. The figures
that count are ratios of two things measured in one run, on the machine that the section names: the
seconds beside them are that machine's own, and depend on what else it did.
"""


def record(title: str, body: str, *packages: str) -> None:
    """Print Markdown, and with RECORD set put it under ``## title`` in RESULTS.md.

    Args:
        packages: those whose versions matter beside mlflow.
    """
    print(f"\n{body}", flush=True)
    write(title, body, *packages)


def write(title: str, body: str, *packages: str) -> None:
    """As ``record``, of what was printed before."""
    if os.environ.get("RECORD"):
        text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEAD
        section = f"## {title}\n\n{body.strip()}\n\n{_where(packages)}\n"
        RESULTS.write_text(replaced(text, title, section), encoding="utf-8")


class Figures:
    """Lines of a bench, printed as they come; put under ``title`` when the block ends well."""

    def __init__(self, title: str, *packages: str) -> None:
        self._title, self._packages = title, packages
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def say(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(f"- {line}")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            write(self._title, "\n".join(self._lines), *self._packages)


def replaced(text: str, title: str, section: str) -> str:
    """The document with this section in it once: where it was, or at the end."""
    head, *parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    named = {part.splitlines()[0].removeprefix("## "): part.strip() + "\n" for part in parts}
    named[title] = section
    return "\n".join([head.strip() + "\n", *named.values()])


def _where(packages: tuple[str, ...]) -> str:
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlflow", *packages))
    return (
        f"*{datetime.date.today()}, {len(os.sched_getaffinity(0))} cores, "
        f"{pages * page / 2**30:.0f} GiB, load {os.getloadavg()[0]:.1f} at the end; "
        f"Python {platform.python_version()}, {versions}*"
    )
