"""Objects into files: several at once, checked, and going on where a killed one stopped.

Next to ``model.pt`` grows ``model.pt.GENERATION.mlflow-gce-part``; it gets the file's name only
when its CRC32C is the bucket's. One stream for an object, since a service may do its work anew for
each range that is asked for (fake-gcs-server does). Memory: one block for each connection.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gce_backend.errors import StorageError
from gce_backend.polling import retry
from gce_backend.rest import open_session
from gce_backend.storage_errors import translated

CONNECTIONS = 8
_PART = ".mlflow-gce-part"
_BLOCK_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 60.0  # without a byte
_RETRY_SECONDS = 120.0  # of one piece
_GOOGLE = "https://storage.googleapis.com"


@dataclass(frozen=True)
class Item:
    """One object, and the file it becomes.

    Args:
        crc32c: base64, as Cloud Storage gives it.
        generation: the version of the object that this is about.
    """

    bucket: str
    name: str
    target: Path
    size: int
    crc32c: str
    generation: str

    @property
    def uri(self) -> str:
        return f"gs://{self.bucket}/{self.name}"

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.{self.generation}{_PART}")


class Downloader:
    """Downloads items; one at a time per process.

    Args:
        project: for the commands that error messages suggest.
        progress: is told how many more bytes are on disk (negative: some were of no use); from
            several threads.
    """

    def __init__(self, *, project: str | None, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._project = project
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        self._base = f"{(emulator or _GOOGLE).rstrip('/')}/download/storage/v1/b"
        self._session = open_session(anonymous=emulator is not None)
        self._failed = threading.Event()

    def download(self, items: Sequence[Item]) -> int:
        """Make every item's file; those that are there already, and whole, are left.

        Returns:
            How many bytes came over the network.

        Raises:
            StorageError: the first that could not be had; what has arrived is kept for the next
                call.
        """
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            pending = [pool.submit(self._download, item) for item in items]
            try:
                return sum(future.result() for future in as_completed(pending))
            except BaseException:
                self._failed.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _download(self, item: Item) -> int:
        """Make one file; how many bytes came for it."""
        try:
            return self._make(item)
        except OSError as error:
            raise StorageError(
                f"cannot write {item.target}: {error.strerror or error}"
                f"{f' ({error.filename})' if error.filename else ''}. What has arrived is kept; "
                f"{_remedy(error)} and run the same command again"
            ) from error

    def _make(self, item: Item) -> int:
        item.target.parent.mkdir(parents=True, exist_ok=True)
        if _is_whole(item.target, item):
            self._progress(item.size)
            return 0
        self._forget_older(item)
        with item.part.open("ab") as file:
            file.truncate(min(file.tell(), item.size))
            before = file.tell()
        self._progress(before)

        def once() -> None:
            with self._translated(item):
                self._fetch(item)

        retry(
            once,
            is_transient=lambda error: isinstance(error, StorageError) and error.transient,
            seconds=_RETRY_SECONDS,
        )
        self._finish(item)
        return item.size - before

    def _forget_older(self, item: Item) -> None:
        """Remove what came of older versions of the object."""
        ours = re.compile(rf"{re.escape(item.target.name)}\.\d+{re.escape(_PART)}")
        for path in item.target.parent.glob(f"*{_PART}"):
            if ours.fullmatch(path.name) and path != item.part:
                path.unlink(missing_ok=True)

    def _fetch(self, item: Item) -> None:
        """Bring what the part lacks."""
        with item.part.open("ab") as file:
            there = file.tell()
            if there == item.size:
                return
            headers = {"Accept-Encoding": "identity"}
            if there:
                headers["Range"] = f"bytes={there}-"
            with self._response(item, headers) as response:
                if there and response.status_code != 206:
                    raise ConnectionError(f"a range was asked for, {response.status_code} came")
                while there < item.size:
                    if self._failed.is_set():
                        raise StorageError(f"{item.uri}: stopped, since another one failed")
                    block = response.raw.read(min(_BLOCK_BYTES, item.size - there))
                    if not block:
                        raise ConnectionError(f"{there} bytes of {item.size} came")
                    file.write(block)
                    there += len(block)
                    self._progress(len(block))

    @contextmanager
    def _response(self, item: Item, headers: dict[str, str]) -> Iterator[Any]:
        from google.api_core.exceptions import from_http_response

        url = f"{self._base}/{item.bucket}/o/{quote(item.name, safe='')}"
        query = {"alt": "media", "generation": item.generation}
        with self._session.get(
            url, params=query, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS
        ) as response:
            if not response.ok:
                raise from_http_response(response)  # type: ignore[no-untyped-call]
            yield response

    @contextmanager
    def _translated(self, item: Item) -> Iterator[None]:
        import urllib3.exceptions

        with translated(f"cannot download {item.uri}", _Place(item.bucket, self._project)):
            try:
                yield
            except urllib3.exceptions.HTTPError as error:  # raw reads are not wrapped
                raise ConnectionError(str(error)) from error

    def _finish(self, item: Item) -> None:
        if not _is_whole(item.part, item):
            self._progress(-item.size)
            item.part.unlink()
            raise StorageError(
                f"{item.uri} arrived with another checksum than the bucket's ({item.crc32c}). The "
                "file was removed; run the same command again"
            )
        item.part.replace(item.target)


@dataclass
class _Place:
    bucket: str
    project: str | None


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room"
    return "name another directory, or move what is in the way,"


def _is_whole(path: Path, item: Item) -> bool:
    try:
        return path.stat().st_size == item.size and crc32c(path) == item.crc32c
    except FileNotFoundError:
        return False


def crc32c(path: Path) -> str:
    """Of a file's content, in base64 as Cloud Storage gives it."""
    import google_crc32c

    checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum.update(block)
    return base64.b64encode(checksum.digest()).decode()


class Rate:
    """Bytes so far and per second. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.bytes = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.bytes += count

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started
