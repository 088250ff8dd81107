"""Whether a run's results are proven: what its agent says, held against the bucket itself."""

from __future__ import annotations

from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.storage import Storage


def unproven(storage: Storage, paths: RunPaths, status: dict[str, Any]) -> list[str]:
    """What the agent or the bucket itself says is missing; empty when everything is there.

    Args:
        status: the run's status.json.

    Raises:
        StorageError: the bucket could not be asked; nothing is proven.
    """
    if not status.get("verified"):
        return list(status.get("missing") or ["the agent could not verify its uploads"])
    manifest = storage.read_json(paths.manifest)
    if manifest is None:
        return [f"{storage.uri(paths.manifest)}: missing"]
    if manifest.get("attempt") != status.get("attempt"):
        return [f"{storage.uri(paths.manifest)}: of attempt {manifest.get('attempt')}"]
    return storage.verify(manifest)
