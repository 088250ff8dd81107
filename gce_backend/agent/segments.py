"""A file that only grows, sent to the bucket in numbered pieces that never change.

Log and journal both go this way. Which bytes make up piece *n* is noted on disk before the
piece is sent, so an agent that dies in between sends exactly the same piece again; a name that
is already taken by the same bytes counts as done.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .endpoint import retrying
from .errors import CloudError
from .files import append, read_range, size_of, sync_directory, write_json
from .storage import Storage, StoredObject

MAX_PIECE_BYTES = 1024 * 1024
_ATTEMPT_S = 30.0  # one try of a piece; the loop tries again after it


class Segments:
    """Pieces of ``file``, named by ``name_of(number)`` with numbers from ``first()`` on.

    Args:
        first: asked once, when there is something to send: the first free number.
        whole_lines: a piece ends with a newline (unless one line is longer than a piece).
    """

    def __init__(
        self,
        storage: Storage,
        bucket: str,
        file: Path,
        name_of: Callable[[int], str],
        *,
        first: Callable[[], int] = lambda: 1,
        whole_lines: bool = False,
    ) -> None:
        self.file = file
        self._storage, self._bucket, self._name_of = storage, bucket, name_of
        self._whole_lines = whole_lines
        self._cursor = file.with_name(file.name + ".pieces")  # the number of the first piece
        self._ends_file = file.with_name(file.name + ".ends.pieces")  # _ends, one a line
        self._lock = threading.Lock()  # one sender at a time
        self._ends: list[int] = []  # end offset of each piece that was begun
        self._first_free = first
        self.first = 0  # 0: not known yet
        self.stored: list[StoredObject] = []
        self._load()
        self._begun_before_restart = bool(self._ends)

    @property
    def count(self) -> int:
        """Number of the last piece that is in the bucket."""
        return max(0, self.first - 1 + len(self.stored))

    @property
    def pending_bytes(self) -> int:
        sent = self._ends[len(self.stored) - 1] if self.stored else 0
        return size_of(self.file) - sent

    def read(self, number: int) -> bytes | None:
        """Piece ``number`` from the disk, once it is in the bucket; None before, or if it is an
        earlier attempt's."""
        index = number - self.first
        if not 0 <= index < len(self.stored):
            return None
        return read_range(self.file, self._ends[index - 1] if index else 0, self._ends[index])

    def send_new(self, until: float) -> None:
        """Send all that the file has gained by now, not what it gains meanwhile; CloudError when
        the bucket refuses until then."""
        with self._lock:
            if self._begun_before_restart:
                self._find_sent(until)
            size = size_of(self.file)
            while True:
                if len(self._ends) == len(self.stored) and not self._begin_piece(size):
                    return
                number = len(self.stored)
                start = self._ends[number - 1] if number else 0
                data = read_range(self.file, start, self._ends[number])
                self.stored.append(self._send(self.first + number, data, until))

    def run(self, stop: threading.Event, interval: float, trouble: Callable[[str], None]) -> None:
        """Send every ``interval`` seconds what is new, until ``stop``; to be run in a thread."""
        while not stop.wait(interval):
            try:
                self.send_new(time.time() + _ATTEMPT_S)
                trouble("")
            except (CloudError, OSError) as error:
                trouble(str(error))

    def _begin_piece(self, size: int) -> bool:
        start = self._ends[-1] if self._ends else 0
        end = min(size, start + MAX_PIECE_BYTES)
        if self._whole_lines and end > start:
            end = _end_of_line(self.file, start, end)
        if end <= start:
            return False
        self.first = self.first or self._first_free()
        self._ends.append(end)
        self._save()
        return True

    def _send(self, number: int, data: bytes, until: float) -> StoredObject:
        name = self._name_of(number)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()

        def once() -> StoredObject:
            try:
                return self._storage.put(self._bucket, name, data, md5=md5, only_if_absent=True)
            except CloudError as error:
                if error.status != 412:
                    raise
            there = self._storage.stat(self._bucket, name)
            if there is not None and there.md5 == md5:
                return there
            raise CloudError(f"gs://{self._bucket}/{name} holds other bytes than ours", 412)

        return retrying(once, until, max_delay=5.0)

    def _load(self) -> None:
        if not self._cursor.exists():
            return
        self.first = int(json.loads(self._cursor.read_bytes())["first"])
        if self._ends_file.exists():
            whole, _, torn = self._ends_file.read_bytes().rpartition(b"\n")
            if torn:  # of a piece that was never sent
                os.truncate(self._ends_file, len(whole) + 1 if whole else 0)
            self._ends = [int(end) for end in whole.split()]

    def _find_sent(self, until: float) -> None:
        """After a restart: take as sent the pieces that the bucket holds with our bytes."""
        directory = self._name_of(self.first).rpartition("/")[0] + "/"
        start = self._name_of(self.first)
        listing = retrying(
            lambda: list(self._storage.objects(self._bucket, directory, start=start)), until
        )
        there = {item.name: item for item in listing}
        for index, end in enumerate(self._ends):
            item = there.get(self._name_of(self.first + index))
            data = read_range(self.file, self._ends[index - 1] if index else 0, end)
            if item is None or item.md5 != hashlib.md5(data, usedforsecurity=False).hexdigest():
                break
            self.stored.append(item)
        self._begun_before_restart = False

    def _sync(self) -> None:
        """The bytes first, then their number: after a power cut between the two other bytes would
        follow, and the bucket takes none under a number that it has."""
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _save(self) -> None:
        """Write the end of the piece that begins, once and for all: a day has 86,400. An OSError
        leaves the piece for another time, since a restart would cut it differently."""
        try:
            self._sync()
            if len(self._ends) == 1:
                write_json(self._cursor, {"first": self.first})
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            descriptor = os.open(self._ends_file, flags, 0o644)
            size = os.fstat(descriptor).st_size
            try:
                append(descriptor, b"%d\n" % self._ends[-1], self._ends_file.name)
                os.fdatasync(descriptor)
            except OSError:
                os.truncate(self._ends_file, size)
                raise
            finally:
                os.close(descriptor)
            if len(self._ends) == 1:
                sync_directory(self._ends_file.parent)
        except OSError:
            self._ends.pop()
            raise


def _end_of_line(file: Path, start: int, end: int) -> int:
    """Largest offset up to ``end`` that ends a line; of a longer line, the end of that line."""
    data = read_range(file, start, end)
    if (cut := data.rfind(b"\n")) >= 0:
        return start + cut + 1
    with file.open("rb") as source:
        source.seek(end)
        source.readline()
        offset = source.tell()
        source.seek(offset - 1, os.SEEK_SET)
        return offset if source.read(1) == b"\n" else start
