"""An emulator of Compute Engine, for clients that nobody here wrote: its instances really run.

``Emulator`` is the library, ``command.py`` the command. Cloud Storage comes with it, behind a
front that is as strict as the real one. What is emulated and what is not: ``docs/emulator.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedded import Emulator
    from .faults import Fault, FaultKind
    from .roots import RootInUse

__all__ = ["Emulator", "Fault", "FaultKind", "RootInUse"]


def __getattr__(name: str) -> Any:
    """Lazily, for the command line imports this package at every start."""
    if name == "Emulator":
        from .embedded import Emulator

        return Emulator
    if name in ("Fault", "FaultKind"):
        from . import faults

        return getattr(faults, name)
    if name == "RootInUse":
        from .roots import RootInUse

        return RootInUse
    raise AttributeError(name)
