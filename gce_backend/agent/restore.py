"""What an earlier attempt saved, put back where the next one's trainer looks for it.

``workdir/`` among the run's artifacts is what an agent saved of the working directory at a bad end;
``checkpoints/`` is where trainers log theirs. Best effort: a training that finds no checkpoint
starts from the beginning, which is what it would do anyway.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import bundle
from .disk import LOW_WATER_BYTES
from .endpoint import retrying
from .errors import CloudError
from .spec import Spec
from .storage import Storage, StoredObject

_PATIENCE_S = 300.0


def restore(storage: Storage, spec: Spec, work: Path, say: Callable[[str], None]) -> None:
    """Bring ``workdir/`` back to ``work``, and ``checkpoints/`` to that of the command's directory.

    Only what fits on the disk; says what was brought and what was not.
    """
    bucket, _, root = spec.artifact_uri.removeprefix("gs://").partition("/")
    until = time.time() + _PATIENCE_S
    brought = 0
    try:
        for directory, target in (
            ("checkpoints", work / spec.workdir / "checkpoints"),
            ("workdir", work),  # later, so that it wins: the trainer wrote it last
        ):
            prefix = f"{root}/{directory}/"
            found = retrying(partial(_list, storage, bucket, prefix), until)
            for item in found:
                brought += _bring(storage, item, target, item.name[len(prefix) :], until, say)
    except (CloudError, OSError) as error:
        say(f"not everything of the earlier attempt could be put back: {error}")
    bundle.take_stock(work)
    if brought:
        say(f"{brought} files of the earlier attempt were put back into the working directory")


def _list(storage: Storage, bucket: str, prefix: str) -> list[StoredObject]:
    return list(storage.objects(bucket, prefix))


def _bring(
    storage: Storage,
    item: StoredObject,
    directory: Path,
    name: str,
    until: float,
    say: Callable[[str], None],
) -> bool:
    path = directory / name
    if not name or not path.resolve().is_relative_to(directory.resolve()):
        return False
    if shutil.disk_usage(directory.parent).free - item.size < LOW_WATER_BYTES:
        say(f"{name} of the earlier attempt was not put back: the disk has no room for it")
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")

    def once() -> None:
        with temporary.open("wb") as file:
            storage.download(item.bucket, item.name, file)

    retrying(once, until)
    os.replace(temporary, path)
    return True
