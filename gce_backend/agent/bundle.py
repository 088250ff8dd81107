"""The project: fetched, verified, unpacked; and what the run added to it, when it failed."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from .errors import AgentError
from .files import hash_file, read_json, write_json
from .spec import Spec, Stored
from .storage import Storage

# What a failed run leaves behind is worth so much of the bucket and of the instance's time.
LEFTOVER_MAX_BYTES = 100 * 1024 * 1024
# With a preempted one they are what the next attempt goes on from: as much as seconds may carry.
PREEMPTED_MAX_BYTES = 1024 * 1024 * 1024
_SKIPPED = {
    ".cache",
    ".git",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
    ".venv",
    "__pycache__",
    "mlruns",
    "node_modules",
    "venv",
}


def fetch(storage: Storage, bucket: str, stored: Stored, target: Path) -> None:
    """Download ``stored`` into ``target``. AgentError when its bytes are not the promised ones."""
    temporary = target.with_name(f".{target.name}.tmp")
    with temporary.open("wb") as file:
        storage.download(bucket, stored.object, file)
    found = hash_file(temporary, "sha256")
    if found != stored.sha256:
        temporary.unlink()
        raise AgentError(
            f"gs://{bucket}/{stored.object} has sha256 {found}, the spec says {stored.sha256}"
        )
    os.replace(temporary, target)


def unpack(archive: Path, work: Path) -> None:
    """Unpack into ``work``, all or nothing. AgentError for a member that leads out of it."""
    if work.exists():
        return
    temporary = work.with_name(f".{work.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _check(member, temporary)
                if hasattr(tarfile, "data_filter"):
                    tar.extract(member, temporary, filter="data")
                else:
                    tar.extract(member, temporary)
    except (tarfile.TarError, OSError) as error:
        raise AgentError(f"the bundle cannot be unpacked: {error}") from error
    write_json(_inventory(work), _files(temporary))
    os.replace(temporary, work)


def take_stock(work: Path) -> None:
    """What is in ``work`` now is no gain of the run."""
    write_json(_inventory(work), _files(work))


def workdir(spec: Spec, work: Path) -> Path:
    """Where the command runs. AgentError when the bundle has no such directory."""
    directory = (work / spec.workdir).resolve()
    if not directory.is_relative_to(work.resolve()) or not directory.is_dir():
        raise AgentError(f"the bundle has no directory '{spec.workdir}'")
    return directory


def leftovers(work: Path, limit: int) -> tuple[list[Path], list[Path]]:
    """Files that are new or changed since the bundle was unpacked, smallest first: those that
    fit into ``limit`` bytes, and those left out."""
    before = read_json(_inventory(work)) or {}
    changed = [name for name, mark in _files(work).items() if before.get(name) != mark]
    sized = sorted((os.stat(work / name).st_size, name) for name in changed)
    kept: list[Path] = []
    left_out: list[Path] = []
    total = 0
    for size, name in sized:
        total += size
        (kept if total <= limit else left_out).append(work / name)
    return kept, left_out


def _check(member: tarfile.TarInfo, root: Path) -> None:
    """Refuse what no project archive of ours holds: devices, and anything outside of ``root``."""
    where = os.path.normpath(os.path.join(root, member.name))
    inside = where == str(root) or where.startswith(f"{root}{os.sep}")
    if not inside or os.path.isabs(member.name):
        raise AgentError(f"the bundle's member '{member.name}' leads out of the project")
    if member.issym() or member.islnk():
        base = root if member.islnk() else Path(where).parent
        target = os.path.normpath(os.path.join(base, member.linkname))
        if os.path.isabs(member.linkname) or not f"{target}{os.sep}".startswith(f"{root}{os.sep}"):
            raise AgentError(f"the bundle's link '{member.name}' leads out of the project")
    elif not (member.isfile() or member.isdir()):
        raise AgentError(f"the bundle's member '{member.name}' is neither file nor directory")


def _inventory(work: Path) -> Path:
    return work.with_name("bundle.files.json")


def _files(root: Path) -> dict[str, list[int]]:
    """Size and modification time (ns) of each regular file; caches are passed over."""
    found: dict[str, list[int]] = {}
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED)
        for name in files:
            path = Path(directory) / name
            if name.endswith(".pyc") or path.is_symlink() or not path.is_file():
                continue
            state = path.stat()
            found[path.relative_to(root).as_posix()] = [state.st_size, state.st_mtime_ns]
    return found
