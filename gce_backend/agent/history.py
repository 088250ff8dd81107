"""What earlier attempts of this run left in the bucket: continued here, never written anew."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

from .endpoint import retrying
from .files import read_json, write_json
from .spec import Spec
from .storage import Storage
from .tracking_state import TrackingState

_PATIENCE_S = 600.0


def continue_journal(storage: Storage, spec: Spec, root: Path, tracking: TrackingState) -> int:
    """Apply the journal of earlier attempts to ``tracking``; returns its last sequence number.

    Which segments those are is noted on disk at the first start, since later ones are our own.
    CloudError when the bucket does not answer for ten minutes.
    """
    note = root / "journal.before.json"
    before = read_json(note)
    if before is None:
        numbers = _numbers(storage, spec, spec.paths.journal_dir)
        before = {"segments": numbers}
        write_json(note, before)
    last_seq = 0
    for number in before["segments"]:
        name = spec.paths.journal(number)
        data = retrying(partial(storage.get, spec.bucket, name), time.time() + _PATIENCE_S)
        for line in data.splitlines():
            record = json.loads(line)
            tracking.apply(record)
            last_seq = max(last_seq, int(record["seq"]))
    return last_seq


def next_number(storage: Storage, spec: Spec, directory: str) -> int:
    """The first number that is free in ``directory`` of the run's log or journal."""
    return max(_numbers(storage, spec, directory), default=0) + 1


def _numbers(storage: Storage, spec: Spec, directory: str) -> list[int]:
    listing = retrying(
        lambda: list(storage.objects(spec.bucket, directory)), time.time() + _PATIENCE_S
    )
    names = [item.name[len(directory) :] for item in listing]
    return sorted(int(name) for name in names if name.isdigit())
