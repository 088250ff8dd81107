"""Files that are either whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1024 * 1024


def write_atomically(path: Path, data: bytes | Iterable[bytes], mode: int = 0o644) -> None:
    """Write ``data``; after a crash at any moment ``path`` holds the old bytes or the new."""
    parts = (data,) if isinstance(data, bytes) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def append(descriptor: int, line: bytes, what: str) -> None:
    """The whole line at the end of ``what``, or an OSError and nothing of it."""
    start = os.fstat(descriptor).st_size
    if (written := os.write(descriptor, line)) != len(line):
        os.ftruncate(descriptor, start)
        raise OSError(f"{what}: only {written} of {len(line)} bytes could be written")


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    write_atomically(path, json.dumps(value).encode(), mode)


def read_json(path: Path) -> Any:
    """The file's JSON, or None when there is no file or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def sync_directory(path: Path) -> None:
    """Make a rename in ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_range(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def hash_file(path: Path, algorithm: str) -> str:
    """Hex digest of a file of any size, with bounded memory."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Size in bytes; 0 when there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
