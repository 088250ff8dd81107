"""The project as one archive, the same bytes for the same tree.

The archive is content-addressed in the bucket, so a sweep over one tree ships it once.
Which files go in is :mod:`gce_backend.project_files`' business.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gce_backend.errors import ProjectError
from gce_backend.project_files import list_project_files

WARN_BYTES = 100 * 1000 * 1000  # the archive's size above which `size_warning` speaks
LARGEST = 5  # how many files it names

# 1980-01-02 00:00 UTC. Not 0: zip, which wheels and model formats are, has no time before 1980
# in any time zone, and Python's zipfile refuses files that claim one.
MTIME = 315_619_200


@dataclass(frozen=True)
class Bundle:
    """An archive of a project.

    Attributes:
        path: the ``.tar.gz``.
        sha256: of the archive, hex.
        size: of the archive, bytes.
        files: (path relative to the project, bytes) of everything in it, sorted.
        largest: the few largest of ``files``, largest first.
        excluded_secrets: untracked files left out because they are named like secrets.
    """

    path: Path
    sha256: str
    size: int
    files: tuple[tuple[str, int], ...]
    largest: tuple[tuple[str, int], ...]
    excluded_secrets: tuple[str, ...]


def make_bundle(project_dir: Path, out: Path, *, without: Path | None = None) -> Bundle:
    """Write what git would ship of ``project_dir`` to ``out``, a deterministic ``.tar.gz``.

    The same tree gives the same bytes with one Python and zlib: sorted names, one time, no
    owners, modes 755 and 644 only. ``out`` appears when it is complete; memory does not depend on
    the files' sizes.

    Args:
        without: a directory whose files stay here: what a sweep writes is no part of the project.

    Raises:
        ProjectError: no such directory, nothing in it to ship, a symbolic link that leaves it,
            or a file that cannot be read or changes meanwhile.
    """
    project_dir = project_dir.resolve()
    out = out.absolute()
    partial = out.with_name(out.name + ".partial")
    listed = list_project_files(project_dir)
    own = {os.path.relpath(path.resolve(), project_dir) for path in (out, partial)}
    paths = [path for path in listed.paths if path not in own]
    if without is not None:
        left_out = os.path.relpath(without.resolve(), project_dir) + "/"
        paths = [path for path in paths if not path.startswith(left_out)]
    if not paths:
        raise ProjectError(
            f"there is nothing to ship in {str(project_dir)!r}: git or an ignore file "
            "excludes every file"
        )
    _refuse_leaving_links(project_dir, paths)
    try:
        with partial.open("wb") as raw:
            target = _HashingWriter(raw)
            files = _write_archive(target, project_dir, paths)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return Bundle(
        path=out,
        sha256=target.sha256.hexdigest(),
        size=target.size,
        files=files,
        largest=tuple(sorted(files, key=lambda file: (-file[1], file[0]))[:LARGEST]),
        excluded_secrets=listed.excluded_secrets,
    )


def size_warning(bundle: Bundle) -> str | None:
    """Above 100 MB, one sentence that names the largest files and the way to leave them out."""
    if bundle.size <= WARN_BYTES:
        return None
    largest = ", ".join(f"{path} ({size / 1e6:.1f} MB)" for path, size in bundle.largest)
    return (
        f"the project's archive is {bundle.size / 1e6:.1f} MB, uploaded once and downloaded by "
        f"every instance. Largest files: {largest}. "
        "Leave files out with a .gcloudignore (same syntax as .gitignore)"
    )


def _write_archive(
    target: _HashingWriter, project_dir: Path, paths: list[str]
) -> tuple[tuple[str, int], ...]:
    files: list[tuple[str, int]] = []
    with (
        # An empty name and no time: gzip's header would carry both.
        gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0, compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in paths:
            try:
                files.append((path, _add(tar, project_dir, path)))
            except OSError as error:
                raise ProjectError(
                    f"cannot put {path!r} of {str(project_dir)!r} into the archive: {error}. "
                    "Nothing was started; leave it out with .gcloudignore, or try again when "
                    "nothing writes to it"
                ) from error
    return tuple(files)


def _add(tar: tarfile.TarFile, project_dir: Path, path: str) -> int:
    """Add one file or link; returns the file's size in bytes (0 for a link)."""
    source = project_dir / path
    member = tarfile.TarInfo(path)
    member.mtime = MTIME
    if source.is_symlink():
        member.type, member.mode = tarfile.SYMTYPE, 0o777
        member.linkname = _relative_target(project_dir, path)
        tar.addfile(member)
        return 0
    with source.open("rb") as content:
        status = os.fstat(content.fileno())
        member.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        member.size = status.st_size
        tar.addfile(member, content)
    return member.size


def _relative_target(project_dir: Path, path: str) -> str:
    """Where the link points, relative: an absolute target does not exist on the instance."""
    target = os.readlink(project_dir / path)
    if not os.path.isabs(target):
        return target
    parent = os.path.realpath((project_dir / path).parent)
    return os.path.relpath(_first_step(project_dir / path), parent)


def _refuse_leaving_links(project_dir: Path, paths: list[str]) -> None:
    leaving = [
        f"{path!r} -> {os.readlink(project_dir / path)!r}"
        for path in paths
        if (project_dir / path).is_symlink() and _leaves(project_dir, path)
    ]
    if leaving:
        raise ProjectError(
            f"symbolic links lead out of the project {str(project_dir)!r}, where an instance has "
            f"nothing: {'; '.join(leaving)}. Replace them by copies, or leave them out with "
            ".gcloudignore"
        )


def _leaves(project_dir: Path, path: str) -> bool:
    """True if what the link names, or where it finally resolves, is outside the project."""
    link = project_dir / path
    top = str(project_dir)
    return any(
        os.path.commonpath([top, target]) != top
        for target in (_first_step(link), os.path.realpath(link))
    )


def _first_step(link: Path) -> str:
    """The absolute path that the link names, itself possibly another link."""
    target = os.path.join(os.path.realpath(link.parent), os.readlink(link))
    directory, name = os.path.split(target)
    return os.path.normpath(os.path.join(os.path.realpath(directory), name))


class _HashingWriter:
    """Writes through to a file, counting and hashing."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.raw.write(data)

    def flush(self) -> None:
        self.raw.flush()
