"""The page says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from gce_backend.emulator.faults import FaultKind
from gce_backend.emulator.methods import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()


def test_the_table_names_exactly_the_emulated_methods() -> None:
    emulated = PAGE.partition("## What is emulated")[2].partition("##")[0]
    named = set()
    for resource, methods in re.findall(r"^\| `(\w+)` \| (.*) \|$", emulated, re.MULTILINE):
        named |= {f"{resource}.{method}" for method in re.findall(r"`(\w+)`", methods)}

    assert named == set(METHODS)


def test_every_kind_of_fault_is_described() -> None:
    described = set(re.findall(r"^\| `(\w+)` \| (?:answer|operation|guest) \|", PAGE, re.MULTILINE))

    assert described == {kind.value for kind in FaultKind}
