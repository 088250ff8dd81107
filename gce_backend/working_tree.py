"""What a git working tree has that its commit has not: as a diff, to be kept with the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path

MAX_BYTES = 1024 * 1024
_MAX_ARGUMENTS = 1000  # names on one command line


def diff(directory: Path, shipped: Collection[str]) -> bytes:
    """``git diff HEAD`` of what lies under ``directory``, new files included.

    Args:
        shipped: paths relative to ``directory``; other files that git does not know are left out,
            since the bundle leaves them out too.

    Returns:
        The diff, cut after a mebibyte, and then it says so; b"" outside of git and without any
        difference.
    """
    index = _git(directory, "rev-parse", "--path-format=absolute", "--git-path", "index")
    untracked = _git(directory, "ls-files", "--others", "--exclude-standard", "-z", "--", ".")
    if index is None or untracked is None:
        return b""
    new = [name for name in untracked.decode().split("\0") if name and name in shipped]
    with tempfile.TemporaryDirectory(prefix="mlflow-gce-") as temporary:
        # In an index of our own, new files can be shown as such; the user's stays as it is.
        own = Path(temporary) / "index"
        if Path(index.decode().strip()).is_file():
            shutil.copy(index.decode().strip(), own)
        environ = {"GIT_INDEX_FILE": str(own)}
        for first in range(0, len(new), _MAX_ARGUMENTS):
            some = new[first : first + _MAX_ARGUMENTS]
            _git(directory, "add", "--intent-to-add", "--", *some, environ=environ)
        found = _git(
            directory, "diff", "--no-ext-diff", "--no-color", "HEAD", "--", ".", environ=environ
        )
    return _cut(found or b"")


def _cut(text: bytes) -> bytes:
    if len(text) <= MAX_BYTES:
        return text
    note = f"\n[cut: {len(text)} bytes in all; the bundle in the bucket has the files]\n"
    return text[:MAX_BYTES] + note.encode()


def _git(directory: Path, *words: str, environ: dict[str, str] | None = None) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words],
            capture_output=True,
            check=False,
            env={**os.environ, **(environ or {})},
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
