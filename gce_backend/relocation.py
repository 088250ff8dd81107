"""Files that lie under a provisional id move to where the store says they are.

They move inside the bucket: copied, verified, then entered in the run's manifest under their new
names, and only then are the originals deleted. Every step may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gce_backend.errors import StorageError
from gce_backend.storage import ObjectInfo, Storage, parse_uri

if TYPE_CHECKING:
    from gce_backend.agent.paths import RunPaths

_COPIES_AT_ONCE = 8


@dataclass(frozen=True)
class Move:
    """All that lies under ``source`` goes under ``target``; both are ``gs://`` directories."""

    source: str
    target: str


@dataclass(frozen=True)
class _Moved:
    bucket: str
    original: str
    info: ObjectInfo


def relocate(
    storage: Storage, paths: RunPaths, moves: list[Move], translate: Callable[[str], str]
) -> None:
    """Make the moves; what has been moved before is not there any more and is left alone.

    Args:
        translate: puts real ids for provisional ones into the text of ``MLmodel`` files.

    Raises:
        StorageError: a copy differs from its original, or the bucket does not answer. The
            originals are still there.
    """
    moved: list[_Moved] = []
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        for move in moves:
            source_bucket, source = parse_uri(move.source)
            target_bucket, target = parse_uri(move.target)
            if source_bucket != target_bucket:
                raise StorageError(f"{move.source} cannot move to another bucket: {move.target}")
            if source == target:
                continue
            bucket = storage.in_bucket(source_bucket)
            copies = [
                pool.submit(_copy, bucket, info, source, target, translate)
                for info in bucket.list(f"{source}/")
            ]
            moved += [copy.result() for copy in copies]
    if moved:
        _rewrite_manifest(storage, paths, moved)
    for one in moved:
        storage.in_bucket(one.bucket).delete(one.original)


def _copy(
    bucket: Storage,
    original: ObjectInfo,
    source: str,
    target: str,
    translate: Callable[[str], str],
) -> _Moved:
    name = target + original.name.removeprefix(source)
    if name.endswith("/MLmodel"):
        text = (bucket.read(original.name) or b"").decode()
        info = bucket.put(name, translate(text).encode())  # sent with its checksum
        return _Moved(bucket.bucket, original.name, info)
    info = bucket.copy(original.name, name)
    if (info.size, info.crc32c) != (original.size, original.crc32c):
        raise StorageError(
            f"the copy {bucket.uri(name)} ({info.size} bytes, crc32c {info.crc32c}) differs from "
            f"{bucket.uri(original.name)} ({original.size} bytes, crc32c {original.crc32c}), "
            "which is untouched; try again"
        )
    return _Moved(bucket.bucket, original.name, info)


def _rewrite_manifest(storage: Storage, paths: RunPaths, moved: list[_Moved]) -> None:
    """The manifest goes on proving that everything is there, under the names of now."""
    manifest = storage.read_json(paths.manifest)
    if manifest is None:
        return
    new = {(one.bucket, one.original): one for one in moved}
    manifest["objects"] = [_entry(entry, new) for entry in manifest["objects"]]
    storage.put_json(paths.manifest, manifest)


def _entry(entry: dict[str, Any], new: dict[tuple[str, str], _Moved]) -> dict[str, Any]:
    moved = new.get((entry["bucket"], entry["name"]))
    if moved is None:
        return entry
    info = moved.info
    return {
        **entry,
        "name": info.name,
        "size": info.size,
        "md5": info.md5,
        "crc32c": info.crc32c,
        "generation": info.generation,
    }
