"""MLflow's ``mlflow-artifacts`` protocol: upload, download, list, delete.

Uploads end in the spool; downloads come from the spool when it has the file, and from the bucket
otherwise. Only what belongs to this run can be written: its artifacts, those of the child runs
and the models that it made.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import IO

from .endpoint import retrying
from .entities import Json
from .errors import CloudError, RelayError, not_found
from .locations import Locations
from .spool import Spool
from .storage import Storage
from .tracking_state import TrackingState

# The bucket may be away; then a listing is what the spool knows.
_BUCKET_PATIENCE_S = 10.0
_MLMODEL_MAX_BYTES = 4 * 1024 * 1024


class ArtifactApi:
    def __init__(
        self,
        spool: Spool,
        storage: Storage,
        locations: Locations,
        lookup: Callable[[Callable[[TrackingState], bool]], bool],
    ) -> None:
        self._spool, self._storage, self._locations = spool, storage, locations
        self._lookup = lookup

    def upload(self, path: str, read: Callable[[int], bytes], length: int | None) -> None:
        """Take ``read(n)``'s bytes in. Raises RelayError when the path is not this run's."""
        name = self._writable(path)
        if name.rpartition("/")[2] == "MLmodel" and (length or 0) <= _MLMODEL_MAX_BYTES:
            # The client wrote the location it knows into the file; the store's is another.
            text = self._locations.for_store(_read_all(read))
            read, length = io.BytesIO(text).read, len(text)
        self._spool.put(self._locations.bucket, name, read, length=length)

    def download(self, path: str) -> tuple[IO[bytes], int | None]:
        """The artifact's bytes, to be closed by the caller, and their number when known."""
        name = self._locations.object_name(path)
        entry = self._spool.find(self._locations.bucket, name)
        if entry is not None and entry.deleted:
            raise not_found(f"No such artifact: '{path}'")
        if entry is not None:
            try:
                return self._spool.path(entry.number).open("rb"), entry.size
            except FileNotFoundError:
                pass  # dropped for want of room: the bucket has it
        return self._from_bucket(name, path)

    def listing(self, path: str) -> Json:
        """Files and directories right below ``path``, with paths relative to it."""
        root = f"{self._locations.object_name(path)}/"
        files, directories = self._bucket_listing(root)
        for entry in self._spool.entries(self._locations.bucket, root):
            child, slash, _ = entry.name[len(root) :].partition("/")
            if entry.deleted:
                if not slash:
                    files.pop(child, None)
            elif slash:
                directories.add(child)
            else:
                files[child] = entry.size
        answer: list[Json] = [{"path": name, "is_dir": True} for name in sorted(directories)]
        answer += [
            {"path": name, "is_dir": False, "file_size": size}
            for name, size in sorted(files.items())
        ]
        return {"files": answer}

    def delete(self, path: str) -> None:
        """Delete a file, or everything below a directory."""
        name = self._writable(path)
        doomed = {entry.name for entry in self._spool.entries(self._locations.bucket, f"{name}/")}
        if self._spool.find(self._locations.bucket, name) is not None:
            doomed.add(name)
        for item in self._in_bucket(name):
            doomed.add(item)
        for one in doomed:
            self._spool.delete(self._locations.bucket, one)

    def _writable(self, path: str) -> str:
        name = self._locations.object_name(path)
        below = name[len(self._locations.prefix) :].strip("/").split("/")

        def is_ours(state: TrackingState) -> bool:
            if below[0] == "models":
                return len(below) > 2 and below[1] in state.models and below[2] == "artifacts"
            return len(below) > 1 and below[0] in state.runs and below[1] == "artifacts"

        if not self._lookup(is_ours):
            raise RelayError(
                "PERMISSION_DENIED",
                f"artifact path '{path}' belongs to another run: from the instance only this "
                "run's artifacts, and those of the runs and models it created, can be written.",
            )
        return name

    def _from_bucket(self, name: str, path: str) -> tuple[IO[bytes], int | None]:
        bucket = self._locations.bucket
        try:
            stream = retrying(
                lambda: self._storage.open(bucket, name), time.time() + 3 * _BUCKET_PATIENCE_S
            )
        except CloudError as error:
            if error.status == 404:
                raise not_found(f"No such artifact: '{path}'") from error
            raise _bucket_away(path, error) from error
        return stream, stream.expected  # type: ignore[return-value]

    def _bucket_listing(self, root: str) -> tuple[dict[str, int], set[str]]:
        """What the bucket has right below ``root``; nothing when it does not answer."""
        try:
            objects, directories = retrying(
                lambda: self._storage.list_directory(self._locations.bucket, root),
                time.time() + _BUCKET_PATIENCE_S,
            )
        except CloudError:
            return {}, set()
        names = {item.name[len(root) :]: item.size for item in objects if item.name != root}
        # Directories whose every file the trainer deleted a moment ago are not there any more.
        gone = {
            entry.name
            for entry in self._spool.entries(self._locations.bucket, root)
            if entry.deleted
        }
        found = set()
        for directory in directories:
            if not any(name.startswith(directory) for name in gone) or self._in_bucket(
                directory.rstrip("/"), without=gone
            ):
                found.add(directory[len(root) :].rstrip("/"))
        return names, found

    def _in_bucket(self, name: str, without: frozenset[str] | set[str] = frozenset()) -> list[str]:
        try:
            listing = retrying(
                lambda: list(self._storage.objects(self._locations.bucket, name)),
                time.time() + _BUCKET_PATIENCE_S,
            )
        except CloudError as error:
            raise _bucket_away(name, error) from error
        return [
            item.name
            for item in listing
            if (item.name == name or item.name.startswith(f"{name}/")) and item.name not in without
        ]


def _read_all(read: Callable[[int], bytes]) -> bytes:
    parts = []
    while part := read(65536):
        parts.append(part)
    return b"".join(parts)


def _bucket_away(path: str, error: CloudError) -> RelayError:
    return RelayError("INTERNAL_ERROR", f"artifact '{path}': the bucket does not answer: {error}")
