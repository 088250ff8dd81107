"""What the store did not accept of a journal: counted on the run, kept as artifacts, told.

The run's tag ``gce.journal.refused`` counts and shows the first few; the artifacts
``gce-refused/<number of a journal segment>.json`` have every one with its reason and its record.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gce_backend.errors import ConfigError, StorageError
from gce_backend.replay import Refusal
from gce_backend.storage import Storage, parse_uri

REFUSED_TAG = "gce.journal.refused"
DIRECTORY = "gce-refused"

_REASONS_TAGGED = 3
_RECORD_CHARACTERS = 4000
_TOLD = 3


def account(before: str | None, new: Iterable[Refusal]) -> str:
    """The tag's JSON: how many were refused, and the first few with their reasons.

    Args:
        before: the tag so far.
    """
    total: dict[str, Any] = json.loads(before) if before else {"count": 0, "first": []}
    for refusal in new:
        total["count"] += refusal.count
        if len(total["first"]) < _REASONS_TAGGED:
            total["first"].append(
                {"record": refusal.seq, "what": refusal.what[:200], "reason": refusal.reason[:300]}
            )
    return json.dumps(total, ensure_ascii=False)  # a tag holds 5000 characters


def keep(
    storage: Storage,
    artifact_uri: str,
    segment: int,
    new: Iterable[Refusal],
    records: Iterable[Mapping[str, Any]],
) -> None:
    """Leave the refusals, with their records, among the run's artifacts; best effort.

    The journal itself stays in the bucket whatever happens here.

    Args:
        segment: number of the last journal segment that they come from.
    """
    by_seq = {record.get("seq"): record for record in records}
    entries = [
        {
            "record": refusal.seq,
            "what": refusal.what,
            "reason": refusal.reason,
            "count": refusal.count,
            "content": json.dumps(by_seq.get(refusal.seq), ensure_ascii=False)[:_RECORD_CHARACTERS],
        }
        for refusal in new
    ]
    with contextlib.suppress(StorageError, ConfigError):  # ConfigError: not in a bucket
        bucket, root = parse_uri(artifact_uri)
        name = f"{root}/{DIRECTORY}/{segment:06d}.json"
        data = json.dumps(entries, indent=1, ensure_ascii=False).encode()
        storage.in_bucket(bucket).put(name, data, content_type="application/json")


class Teller:
    """Tells the user of the first few; of all further ones together, once."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._left = _TOLD

    def tell(self, new: list[Refusal]) -> None:
        for refusal in new[: self._left]:
            self._warn(
                f"the tracking store does not accept {refusal.what}: {refusal.reason}. It is set "
                f"aside, with its reason, among the run's artifacts: {DIRECTORY}/. Everything else "
                "goes on"
            )
        if len(new) > self._left > 0:
            self._warn(f"more was refused; all of it is among the artifacts: {DIRECTORY}/")
        self._left = max(0, self._left - len(new))
