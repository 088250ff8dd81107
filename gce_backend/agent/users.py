"""Whom the trainer runs as: an unprivileged user of its own where the image allows one.

This keeps mistakes of the training code away from the agent's files. It is no boundary against
malicious code.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "trainer"


@dataclass(frozen=True)
class Account:
    """``uid`` None: the trainer runs as the agent does."""

    uid: int | None
    gid: int | None
    name: str
    home: str

    def popen(self) -> dict[str, Any]:
        """Arguments for ``subprocess.Popen``."""
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, root: Path) -> None:
        """Make ``root`` and all below it the account's."""
        if self.uid is None or self.gid is None:
            return
        os.chown(root, self.uid, self.gid)
        for directory, names, files in os.walk(root):
            for name in names + files:
                os.chown(Path(directory) / name, self.uid, self.gid, follow_symlinks=False)


def trainer_account(say: Callable[[str], None]) -> Account:
    """The account for the trainer, made when it is not there yet."""
    myself = _myself()
    if os.geteuid() != 0:
        say(f"the trainer runs as '{myself.name}', like the agent: only root can change that")
        return myself
    try:
        entry = pwd.getpwnam(NAME)
    except KeyError:
        problem = _create()
        if problem:
            say(f"the trainer runs as '{myself.name}', like the agent: {problem}")
            return myself
        entry = pwd.getpwnam(NAME)
    return Account(entry.pw_uid, entry.pw_gid, NAME, entry.pw_dir)


def _create() -> str:
    """Make the user; returns why it could not be made, or ""."""
    useradd = shutil.which("useradd")
    if useradd is None:
        return "the image has no useradd"
    done = subprocess.run(
        [useradd, "--create-home", "--shell", "/bin/bash", NAME], capture_output=True, text=True
    )
    if done.returncode:
        return f"useradd: {(done.stderr or done.stdout).strip() or f'exit code {done.returncode}'}"
    try:
        pwd.getpwnam(NAME)
    except KeyError:
        return "useradd made no user"
    return ""


def _myself() -> Account:
    try:
        entry = pwd.getpwuid(os.geteuid())
        return Account(None, None, entry.pw_name, entry.pw_dir)
    except KeyError:
        return Account(None, None, str(os.geteuid()), os.environ.get("HOME", "/"))
