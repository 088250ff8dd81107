"""A virtual environment that is this one with a few packages swapped."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent


def make_venv(directory: Path, *packages: str) -> Path:
    """Its Python. ``packages`` are installed as they are, without what they depend on."""
    venv.create(directory, with_pip=False, symlinks=True)
    (site,) = (directory / "lib").glob("python*/site-packages")
    target = ["--target", str(site), "--no-deps", "--pre", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *target]
    subprocess.run([*command, *packages], check=True, timeout=300)
    # Behind what was installed; the checkout first, as where it is installed to be edited.
    (site / "zz_rest.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (site / "aa_checkout.pth").write_text(f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}]\n")
    return directory / "bin" / "python"
