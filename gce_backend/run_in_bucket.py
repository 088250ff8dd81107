"""A run found by its whole id in the bucket that is configured here, without asking MLflow.

Importing MLflow and opening a store takes three to four seconds, as long as a gigabyte takes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.errors import ConfigError, StorageError
from gce_backend.storage import Storage, parse_uri

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_RETRY_SECONDS = 5.0  # the store knows as well


@dataclass(frozen=True)
class RunPlace:
    """Where a run's files are.

    Args:
        project: for commands that messages suggest.
        bucket, paths: of the run's own files.
        user: who started it; "" where it does not say.
        started_at: unix seconds, as the store has it.
    """

    project: str | None
    bucket: str
    paths: RunPaths
    artifact_uri: str
    user: str
    started_at: float


def find_in_bucket(run: str, bucket: str | None, prefix: str) -> RunPlace | None:
    """The run with this id by its spec; None where only the store can say (or nobody)."""
    if not bucket or not _RUN_ID.fullmatch(run):
        return None
    project, paths = os.environ.get("GOOGLE_CLOUD_PROJECT") or None, RunPaths(prefix, run)
    try:
        storage = Storage(bucket, project=project, retry_seconds=_RETRY_SECONDS)
        spec = storage.read_json(paths.spec)
        return None if spec is None else _place(spec, project, bucket, paths)
    except (StorageError, ConfigError, LookupError, TypeError, ValueError):
        return None


def _place(spec: dict[str, Any], project: str | None, bucket: str, paths: RunPaths) -> RunPlace:
    run = spec["tracking"]["run"]
    tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
    uri = str(run["info"]["artifact_uri"])
    parse_uri(uri)
    started_at = int(run["info"]["start_time"]) / 1000
    return RunPlace(project, bucket, paths, uri, tags.get("mlflow.user", ""), started_at)
