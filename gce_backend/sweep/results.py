"""What a job left in the bucket: how it ended, and the files of a local multirun."""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.lifecycle import EndReason
from gce_backend.proof import unproven
from gce_backend.storage import Storage, parse_uri

RESULT = "hydra/result.json"
OUTPUTS = "hydra/outputs.tar.gz"
#: What can go wrong with an archive and a disk.
FETCH_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        told: what the job itself said (``job``); empty when it could not.
        problem: why it failed, in a sentence or more; "" for a job that completed.
    """

    run_id: str
    told: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    seconds: float | None = None

    @property
    def completed(self) -> bool:
        return not self.problem and self.told.get("status") == "COMPLETED"


def proven_end(storage: Storage, paths: RunPaths) -> EndReason | None:
    """How a run ended by its bucket alone; None where its results are not proven to be there."""
    status = storage.read_json(paths.status)
    if status is None or unproven(storage, paths, status):
        return None
    return EndReason(status["end_reason"])


def read_result(storage: Storage, artifact_uri: str) -> dict[str, Any]:
    """``result.json`` of a job, empty when it left none."""
    bucket, root = parse_uri(artifact_uri)
    told = storage.in_bucket(bucket).read_json(f"{root}/{RESULT}")
    return told if isinstance(told, dict) else {}


def fetch_outputs(
    storage: Storage, artifact_uri: str, *, output_dir: Path, root: Path, bundled_at: float
) -> list[str]:
    """Put a job's files where a local multirun would have left them.

    Args:
        output_dir: Hydra's directory of this job, here.
        root: the project; what the job wrote in it besides comes back as well.
        bundled_at: unix seconds; a file changed here since then is left as it is.

    Returns:
        The project's files that were left as they are, though the job wrote them too.

    Raises:
        StorageError: the bucket did not answer.
        FETCH_ERRORS: the archive is none, or a file cannot be written.
    """
    bucket, base = parse_uri(artifact_uri)
    kept: list[str] = []
    with tempfile.TemporaryFile() as file:
        if not storage.in_bucket(bucket).read_into(f"{base}/{OUTPUTS}", file):
            return []
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            for member in tar:
                top, _, name = member.name.partition("/")
                if top == "output":
                    _extract(tar, member, name, output_dir)
                elif top == "project" and name:
                    here = root / name
                    if here.exists() and here.stat().st_mtime > bundled_at:
                        kept.append(name)
                    else:
                        _extract(tar, member, name, root)
    return kept


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, directory: Path) -> None:
    """One member below ``directory``; nothing can leave it."""
    directory.mkdir(parents=True, exist_ok=True)
    if name:
        tar.extract(member.replace(name=name, deep=False), directory, filter="data")
