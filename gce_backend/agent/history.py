"""What earlier attempts of this run left in the bucket: continued here, never written anew."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .endpoint import retrying
from .files import write_atomically
from .spec import Spec
from .storage import Storage

_PATIENCE_S = 600.0


def earlier_records(storage: Storage, spec: Spec, copy: Path) -> Iterator[dict[str, Any]]:
    """The journal records of earlier attempts, in order.

    Fetched at the first start on this disk, before there are segments of our own, and kept in
    ``copy``: a restarted agent must not depend on the bucket to answer the trainer again.
    CloudError when the bucket does not answer for ten minutes.
    """
    if not copy.exists():
        until = time.time() + _PATIENCE_S
        names = [spec.paths.journal(n) for n in _numbers(storage, spec, spec.paths.journal_dir)]
        parts = (retrying(partial(storage.get, spec.bucket, name), until) for name in names)
        write_atomically(copy, parts)
    with copy.open("rb") as file:
        for line in file:
            yield json.loads(line)


def next_number(storage: Storage, spec: Spec, directory: str) -> int:
    """The first number that is free in ``directory`` of the run's log or journal."""
    return max(_numbers(storage, spec, directory), default=0) + 1


def _numbers(storage: Storage, spec: Spec, directory: str) -> list[int]:
    listing = retrying(
        lambda: list(storage.objects(spec.bucket, directory)), time.time() + _PATIENCE_S
    )
    names = [item.name[len(directory) :] for item in listing]
    return sorted(int(name) for name in names if name.isdigit())
