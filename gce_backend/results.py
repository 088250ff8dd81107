"""What a run has left in its bucket for people: its artifacts and logged models, as files to be.

The layout below the target directory is that of the run's artifacts (``metrics.json``, ``model.pt``
at the top); a logged model's files lie in ``models/MODEL_ID/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.download import Item
from gce_backend.errors import StorageError
from gce_backend.storage import Storage, parse_uri

_MODEL = re.compile(r"(?P<root>.*/models/(?P<id>m-[0-9a-f]{32})/artifacts/)")


def results(
    storage: Storage, paths: RunPaths, artifact_uri: str, target: Path
) -> tuple[list[Item], list[str]]:
    """What can be downloaded now, and what the run's manifest has and the bucket has not.

    Raises:
        StorageError: the bucket did not answer, or an object's name leads out of ``target``.
        ConfigError: the run's artifacts are not in Cloud Storage.
    """
    bucket, root = parse_uri(artifact_uri)
    folders = {f"{root.rstrip('/')}/": target}
    manifest: dict[str, Any] = storage.read_json(paths.manifest) or {"objects": []}
    for entry in manifest["objects"]:
        if match := _MODEL.match(entry["name"]):
            folders[match["root"]] = target / "models" / match["id"]
    there = storage.in_bucket(bucket)
    items = [item for folder in folders.items() for item in _below(there, *folder)]
    names = {item.name for item in items}
    lost = [
        f"gs://{entry['bucket']}/{entry['name']}"
        for entry in manifest["objects"]
        if entry["name"].startswith(tuple(folders)) and entry["name"] not in names
    ]
    return items, lost


def _below(storage: Storage, folder: str, target: Path) -> Iterator[Item]:
    for info in storage.list(folder):
        relative = PurePosixPath(info.name.removeprefix(folder))
        if info.name.endswith("/"):
            continue  # the mark that some tools leave for a folder
        if relative.is_absolute() or ".." in relative.parts:
            raise StorageError(
                f"{storage.uri(info.name)}: its name leads out of {target}; nothing was downloaded"
            )
        yield Item(
            bucket=storage.bucket,
            name=info.name,
            target=target / relative,
            size=info.size,
            crc32c=info.crc32c,
            generation=info.generation,
        )
