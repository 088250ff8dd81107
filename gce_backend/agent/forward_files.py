"""Files under a provisional id go to where the tracking server says they are, inside the bucket.

Copied by Cloud Storage, compared, then known to the spool by their new names, so that the manifest
proves them there; the originals are deleted by the uploader after that. May be repeated anywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from .endpoint import retrying
from .errors import CloudError
from .spool import Spool
from .storage import Storage, StoredObject


class Files:
    """What this run has in the bucket, to be moved within it."""

    def __init__(self, spool: Spool, storage: Storage) -> None:
        self._spool, self._storage = spool, storage

    def move(self, source: str, target: str, translate: Callable[[str], str], until: float) -> None:
        """All that lies under ``source`` goes under ``target``, both ``gs://`` directories.

        ``translate`` puts real ids for provisional ones into the text of ``MLmodel`` files.
        CloudError: something could not be moved; its original is still there.
        """
        bucket, _, old = source.removeprefix("gs://").partition("/")
        if not target.startswith(f"gs://{bucket}/"):
            raise CloudError(f"{source} cannot move to another bucket: {target}")
        new = target.removeprefix(f"gs://{bucket}/")
        if new == old:
            return
        listing = retrying(lambda: list(self._storage.objects(bucket, f"{old}/")), until)
        for item in listing:
            entry = self._spool.find(bucket, item.name)
            if entry is None or not entry.deleted:  # else it was moved before a restart
                self._move(item, new + item.name.removeprefix(old), translate, until)

    def _move(
        self, item: StoredObject, name: str, translate: Callable[[str], str], until: float
    ) -> None:
        if name.endswith("/MLmodel"):
            text = retrying(lambda: self._storage.get(item.bucket, item.name), until).decode()
            self._spool.put(item.bucket, name, io.BytesIO(translate(text).encode()).read)
        else:
            copy = retrying(lambda: self._storage.copy(item.bucket, item.name, name), until)
            if (copy.size, copy.md5, copy.crc32c) != (item.size, item.md5, item.crc32c):
                copied = f"gs://{item.bucket}/{name}"
                raise CloudError(f"{copied} differs from {item.name}, which is untouched")
            if (entry := self._spool.find(item.bucket, item.name)) is not None:
                self._spool.add_copy(entry, copy)
        self._spool.delete(item.bucket, item.name)
