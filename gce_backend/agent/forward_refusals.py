"""What the tracking server did not accept: counted on the run, kept among its artifacts.

The same tag and the same files as a client leaves (``refusals.py`` there).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

from .entities import Json
from .errors import CloudError
from .forward_replay import Refusal
from .storage import Storage

REFUSED_TAG = "gce.journal.refused"
DIRECTORY = "gce-refused"
_REASONS_TAGGED = 3
_RECORD_CHARACTERS = 4000


def account(before: str | None, new: list[Refusal]) -> str:
    """The tag's JSON: how many were refused, and the first few with their reasons."""
    total: dict[str, Any] = json.loads(before) if before else {"count": 0, "first": []}
    for refusal in new:
        total["count"] += refusal.count
        if len(total["first"]) < _REASONS_TAGGED:
            total["first"].append(
                {"record": refusal.seq, "what": refusal.what[:200], "reason": refusal.reason[:300]}
            )
    return json.dumps(total, ensure_ascii=False)


def keep(
    storage: Storage, artifact_uri: str, segment: int, new: list[Refusal], records: list[Json]
) -> None:
    """Leave the refusals, with their records, among the run's artifacts; best effort.

    ``segment``: number of the last journal segment that they come from.
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
    bucket, _, root = artifact_uri.removeprefix("gs://").partition("/")
    data = json.dumps(entries, indent=1, ensure_ascii=False).encode()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    with contextlib.suppress(CloudError):  # the journal itself stays in the bucket
        storage.put(bucket, f"{root}/{DIRECTORY}/{segment:06d}.json", data, md5=md5)
