"""Proof that what the run produced is in the bucket: the spool's record against a fresh listing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .endpoint import retrying
from .storage import Storage, StoredObject

VERSION = 1


@dataclass(frozen=True)
class Comparison:
    """``objects`` as the bucket has them now; ``missing`` says of the others what is wrong."""

    objects: list[StoredObject]
    missing: list[tuple[StoredObject, str]]


def compare(storage: Storage, expected: Iterable[StoredObject], until: float) -> Comparison:
    """List the bucket anew and hold every expected object against it (size, md5, crc32c).

    Raises CloudError when the bucket does not answer until ``until``.
    """
    wanted = sorted(expected, key=lambda item: (item.bucket, item.name))
    found: dict[tuple[str, str], StoredObject] = {}
    for bucket, prefix in sorted({(item.bucket, _directory(item.name)) for item in wanted}):
        listing = retrying(partial(_list, storage, bucket, prefix), until)
        found.update({(item.bucket, item.name): item for item in listing})
    objects: list[StoredObject] = []
    missing: list[tuple[StoredObject, str]] = []
    for item in wanted:
        there = found.get((item.bucket, item.name))
        problem = _difference(item, there)
        if there is None or problem:
            missing.append((item, f"gs://{item.bucket}/{item.name}: {problem}"))
        else:
            objects.append(replace(item, generation=there.generation, crc32c=there.crc32c))
    return Comparison(objects, missing)


def to_json(run_id: str, attempt: int, objects: Iterable[StoredObject]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "run_id": run_id,
        "attempt": attempt,
        "objects": [
            {
                "bucket": item.bucket,
                "name": item.name,
                "size": item.size,
                "md5": item.md5,
                "crc32c": item.crc32c,
                "generation": item.generation,
            }
            for item in objects
        ],
    }


def _difference(expected: StoredObject, there: StoredObject | None) -> str:
    if there is None:
        return "not in the bucket"
    if there.size != expected.size:
        return f"{there.size} bytes in the bucket, {expected.size} were produced"
    if there.md5 and there.md5 != expected.md5:
        return f"md5 {there.md5} in the bucket, {expected.md5} was produced"
    if expected.crc32c and there.crc32c and there.crc32c != expected.crc32c:
        return f"crc32c {there.crc32c} in the bucket, {expected.crc32c} was uploaded"
    return ""


def _list(storage: Storage, bucket: str, prefix: str) -> list[StoredObject]:
    """Only what lies right in the directory: each directory is asked for by itself."""
    return storage.list_directory(bucket, prefix)[0]


def _directory(name: str) -> str:
    head, slash, _ = name.rpartition("/")
    return f"{head}{slash}"
