"""What a tracking store did not accept of a journal: counted on the run, kept as artifacts.

The run's tag ``gce.journal.refused`` counts and shows the first few; the artifacts
``gce-refused/<number of a journal segment>.json`` have every one with its reason and its record.
Client and agent write the same; standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .records import Refusal

REFUSED_TAG = "gce.journal.refused"
DIRECTORY = "gce-refused"

_REASONS_TAGGED = 3
_TAG_CHARACTERS = 5000  # what every store takes; cut by the store it would be no JSON any more
_RECORD_CHARACTERS = 4000


def account(before: str | None, new: Iterable[Refusal]) -> str:
    """The tag's JSON: how many were refused, and the first few with their reasons.

    Args:
        before: the tag so far.
    """
    total: dict[str, Any] = json.loads(before) if before else {"count": 0, "first": []}
    for refusal in new:
        total["count"] += refusal.count
        if len(total["first"]) < _REASONS_TAGGED:
            what, reason = _encodable(refusal.what[:200]), _encodable(refusal.reason[:300])
            total["first"].append({"record": refusal.seq, "what": what, "reason": reason})
    while len(text := json.dumps(total, ensure_ascii=False)) > _TAG_CHARACTERS:
        total["first"].pop()
    return text


def artifact(
    segment: int, new: Iterable[Refusal], records: Iterable[Mapping[str, Any]]
) -> tuple[str, bytes]:
    """Path among the run's artifacts, and content, of the file with the refusals' records.

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
    content = _encodable(json.dumps(entries, indent=1, ensure_ascii=False)).encode()
    return f"{DIRECTORY}/{segment:06d}.json", content


def _encodable(text: str) -> str:
    """Without half characters: JSON may hold unpaired surrogates, UTF-8 and databases may not."""
    return text.encode(errors="replace").decode()
