"""What a check has found, and the command that mends it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@enum.unique
class State(enum.Enum):
    """How sure, and how bad."""

    OK = "ok"
    FAILED = "FAILED"  # a run would fail, or cost what it need not
    WARNING = "warning"  # a run works, not as well as it could
    INFERRED = "inferred"  # cannot be known from here
    SKIPPED = "skipped"  # something else must be mended first


@dataclass(frozen=True)
class Finding:
    """Args:
    name: of the check.
    detail: what was found, in one sentence.
    remedy: the exact command, or lines of them, that mends it; "" where nothing is to be mended.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""
