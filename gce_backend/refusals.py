"""What the store did not accept of a journal, kept and told by the client.

``agent/refusals.py`` says in which form, since an agent that forwards leaves the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gce_backend.agent.records import Refusal
from gce_backend.agent.refusals import DIRECTORY, artifact
from gce_backend.errors import ConfigError, StorageError
from gce_backend.storage import Storage, parse_uri

_TOLD = 3


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
    path, content = artifact(segment, new, records)
    with contextlib.suppress(StorageError, ConfigError):  # ConfigError: not in a bucket
        bucket, root = parse_uri(artifact_uri)
        storage.in_bucket(bucket).put(f"{root}/{path}", content, content_type="application/json")


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
