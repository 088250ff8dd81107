"""The Python versions that images bring, as far as this machine has them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13")


def found() -> dict[str, str]:
    """Version and interpreter of each that is to be had; the one that runs us always is."""
    return {version: python for version in VERSIONS if (python := _find(version))}


def _find(version: str) -> str | None:
    name = shutil.which(f"python{version}")
    # A version manager's stand-in is found as well, and may have nothing behind it.
    if name and subprocess.run([name, "-c", ""], capture_output=True).returncode == 0:
        return name
    known = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python3"))
    return str(known[-1]) if known else None
