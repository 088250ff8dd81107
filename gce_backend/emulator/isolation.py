"""Isolation of an instance with Linux namespaces, where the machine allows it.

A process of ours is the instance's process 1, in mount, process and host-name namespaces of its
own; everything else is started inside through ``nsenter``. When process 1 ends, the kernel ends
the rest. /tmp and /home are the instance's; what the interpreter needs of the real ones is put
back, so that every path means the same inside and outside.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

HIDDEN = (Path("/tmp"), Path("/home"))
_NAMESPACES = ("--mount", "--uts", "--pid")


@cache
def is_permitted() -> bool:
    """Whether namespaces can be made here; tried once."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"):
        return False
    trial = [*_unshare(), "true"]
    return subprocess.run(trial, capture_output=True, check=False, timeout=20).returncode == 0


def holder(directory: Path, name: str, metadata_address: str) -> list[str]:
    """Command of process 1 of an instance that lives in ``directory``."""
    return [*_unshare(), "bash", "-c", _setup(directory, name, metadata_address)]


def inside(first_pid: int, directory: Path, arguments: Sequence[str]) -> list[str]:
    """``arguments``, run in ``directory`` in the namespaces of process 1.

    ``first_pid``: of process 1 as seen from outside.
    """
    target = ["--target", str(first_pid), f"--wdns={directory}"]
    return ["nsenter", *target, *_NAMESPACES, "--", *arguments]


def child_of(pid: int) -> int | None:
    """The only child of ``unshare``, which is process 1 of the namespace; None: not yet."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def _unshare() -> list[str]:
    return ["unshare", *_NAMESPACES, "--fork", "--kill-child=KILL", "--mount-proc", "--"]


def _setup(directory: Path, name: str, metadata_address: str) -> str:
    lines = ["set -e", f"hostname {shlex.quote(name)}"]
    kept = sorted({directory, Path(sys.prefix), Path(sys.base_prefix)})
    for hidden in HIDDEN:
        own = directory / hidden.name
        for path in kept:
            if path.is_relative_to(hidden):
                place = shlex.quote(str(own / path.relative_to(hidden)))
                lines.append(f"mkdir -p {place}; mount --bind {shlex.quote(str(path))} {place}")
        if hidden.is_dir():
            lines.append(f"mount --rbind {shlex.quote(str(own))} {hidden}")
    hosts = directory / "hosts"
    lines.append(f"mount --bind {shlex.quote(str(hosts))} /etc/hosts")
    # SIGCHLD ignored: the kernel itself collects orphans. `ready` tells that the mounts stand.
    lines += [
        "trap '' CHLD",
        f"touch {shlex.quote(str(directory / 'ready'))}",
        "exec sleep infinity",
    ]
    hosts.write_text(
        f"127.0.0.1 localhost\n{metadata_address} metadata.google.internal metadata\n"
        f"127.0.1.1 {name}\n"
    )
    return "\n".join(lines)
