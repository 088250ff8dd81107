"""Objects into files: in parallel, in pieces, checked, and going on where a killed one stopped.

Next to ``model.pt`` stand ``model.pt.GENERATION.mlflow-gce-part``, filled from several connections
at once, and ``….done``, the numbers of the pieces that are whole. The file gets its name only when
its CRC32C is the bucket's. Memory: one block for each connection.
"""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gce_backend.errors import StorageError
from gce_backend.polling import retry
from gce_backend.rest import open_session
from gce_backend.storage_errors import translated

PIECE_BYTES = 32 * 1024 * 1024
CONNECTIONS = 8
_PART = ".mlflow-gce-part"
_BLOCK_BYTES = 1024 * 1024
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

    @property
    def done(self) -> Path:
        return self.part.with_name(f"{self.part.name}.done")


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
        fetched = 0
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            pending = {}
            for item in items:
                missing = self._begin(item)
                for number in missing or []:
                    pending[pool.submit(self._piece, item, number)] = item
                if missing == []:  # killed between the last piece and the checksum
                    self._finish(item)
            left = {item: 0 for item in items}
            for item in pending.values():
                left[item] += 1
            try:
                for future in as_completed(pending):
                    fetched += future.result()
                    item = pending[future]
                    left[item] -= 1
                    if not left[item]:
                        self._finish(item)
            except BaseException:
                self._failed.set()
                pool.shutdown(cancel_futures=True)
                raise
        return fetched

    def _begin(self, item: Item) -> list[int] | None:
        """The numbers of the pieces that are still to come; None when the file is there, whole."""
        item.target.parent.mkdir(parents=True, exist_ok=True)
        if _is_whole(item.target, item):
            self._progress(item.size)
            return None
        done = _numbers(item.done) if item.part.exists() else set()
        ours = re.compile(rf"{re.escape(item.target.name)}\.\d+{re.escape(_PART)}(\.done)?")
        for path in item.target.parent.glob(f"*{_PART}*"):
            if ours.fullmatch(path.name) and path not in (item.part, item.done):
                path.unlink(missing_ok=True)  # of an older version of the object
        with item.part.open("ab") as file:
            file.truncate(item.size)
        count = max(1, -(-item.size // PIECE_BYTES))
        self._progress(sum(_length(item, number) for number in done if number < count))
        return [number for number in range(count) if number not in done]

    def _piece(self, item: Item, number: int) -> int:
        def once() -> int:
            with self._translated(item):
                return self._fetch(item, number)

        size = retry(
            once,
            is_transient=lambda error: isinstance(error, StorageError) and error.transient,
            seconds=_RETRY_SECONDS,
        )
        with item.done.open("a") as file:
            file.write(f"{number}\n")
        return size

    def _fetch(self, item: Item, number: int) -> int:
        start, length = number * PIECE_BYTES, _length(item, number)
        if not length:
            return 0
        headers = {"Accept-Encoding": "identity"}
        if length < item.size:
            headers["Range"] = f"bytes={start}-{start + length - 1}"
        written = 0
        try:
            with self._response(item, headers) as response, item.part.open("r+b") as file:
                file.seek(start)
                while written < length:
                    if self._failed.is_set():
                        raise StorageError(f"{item.uri}: stopped, since another one failed")
                    block = response.raw.read(min(_BLOCK_BYTES, length - written))
                    if not block:
                        raise ConnectionError(f"{written} bytes of {length} came")
                    file.write(block)
                    written += len(block)
                    self._progress(len(block))
        except BaseException:
            self._progress(-written)
            raise
        return written

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

        try:
            with translated(f"cannot download {item.uri}", _Place(item.bucket, self._project)):
                try:
                    yield
                except urllib3.exceptions.HTTPError as error:  # raw reads are not wrapped
                    raise ConnectionError(str(error)) from error
        except OSError as error:
            raise StorageError(
                f"cannot write {item.part}: {error.strerror or error}. What has arrived is kept; "
                "make room and run the same command again"
            ) from error

    def _finish(self, item: Item) -> None:
        if not _is_whole(item.part, item):
            self._progress(-item.size)
            for path in (item.part, item.done):
                path.unlink(missing_ok=True)
            raise StorageError(
                f"{item.uri} arrived with another checksum than the bucket's ({item.crc32c}). The "
                "file was removed; run the same command again"
            )
        item.part.replace(item.target)
        item.done.unlink(missing_ok=True)


@dataclass
class _Place:
    bucket: str
    project: str | None


def _length(item: Item, number: int) -> int:
    return min(PIECE_BYTES, item.size - number * PIECE_BYTES)


def _numbers(done: Path) -> set[int]:
    """Of the pieces that are whole; a line that a kill cut short does not count."""
    numbers = set()
    with suppress(FileNotFoundError):
        for line in done.read_text().splitlines(keepends=True):
            if line.endswith("\n") and line.strip().isdigit():
                numbers.add(int(line))
    return numbers


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
