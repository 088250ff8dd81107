"""Artifacts on the instance's disk: taken in whole, hashed on the way, remembered in an index.

A file is acknowledged only after it lies complete under its own name and the index says so; both
survive a restart. What the manifest says comes from here: from bytes that passed through these
hands, never from a listing of what arrived. Uploading is ``uploader.py``'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .disk import LOW_WATER_BYTES
from .errors import RelayError
from .files import CHUNK_BYTES, append, hash_file, read_json, sync_directory
from .storage import StoredObject

# Free disk below which nothing more is taken in; uploaded copies are dropped at LOW_WATER_BYTES.
FULL_BYTES = 256 * 1024**2
_LOOK_EVERY_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class Entry:
    """The newest content of one object name. ``number`` grows with every change."""

    number: int
    bucket: str
    name: str
    size: int
    md5: str  # hex
    deleted: bool = False  # the trainer deleted it; the bucket is to follow
    done: bool = False  # the bucket has it (or has deleted it)
    crc32c: str = ""
    generation: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.bucket, self.name


class Spool:
    """Thread-safe. ``on_change`` is called after a new entry was acknowledged."""

    def __init__(self, root: Path, say: Callable[[str], None] = lambda message: None) -> None:
        self.root, self._say = root, say
        self._index_file = root / "index.jsonl"
        self._lock = threading.RLock()
        self._entries: dict[tuple[str, str], Entry] = {}
        # Those that are not done, oldest first. Of a dict, the first one of those left is found
        # the slower the more were taken away before it.
        self._pending: OrderedDict[tuple[str, str], Entry] = OrderedDict()
        self._number = 0
        self.on_change: Callable[[], None] = lambda: None
        self._is_low = False
        self._promised: dict[int, tuple[str, str, int | None]] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._load()
        self._index = self._index_file.open("ab", buffering=0)

    # -- taking in ----------------------------------------------------------------------------

    def put(
        self,
        bucket: str,
        name: str,
        read: Callable[[int], bytes],
        *,
        length: int | None = None,
        unless_known: bool = False,
    ) -> Entry | None:
        """Stream ``read(n)`` until it gives b"" into the spool. Raises RelayError on a full disk.

        ``unless_known``: returns None, and keeps nothing, when any entry has the same bytes.
        """
        number = self._next_number()
        temporary = self.root / f".{number}.tmp"
        try:
            self._promise(number, bucket, name, length)
            self._make_room(length or 0)
            size, md5 = _receive(temporary, read)
            if unless_known and self._knows(md5):
                self._keep_promises(bucket, name)
                return None
            os.replace(temporary, self.path(number))
            sync_directory(self.root)
        except ConnectionError:
            raise  # the trainer went away in the middle: nothing was acknowledged
        except OSError as error:
            raise _full(self.root, f"{name}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return self._accept(Entry(number, bucket, name, size, md5))

    def put_file(
        self,
        bucket: str,
        name: str,
        path: Path,
        *,
        unless_known: bool = False,
        link: bool = False,
    ) -> Entry | None:
        """Like :meth:`put`. With ``link`` the file is not copied: quicker, and needs no room; but
        whoever changed it from now on would spoil the upload."""
        if not link:
            with path.open("rb") as file:
                return self.put(bucket, name, file.read, unless_known=unless_known)
        md5 = hash_file(path, "md5")
        if unless_known and self._knows(md5):
            return None
        number = self._next_number()
        try:
            os.link(path, self.path(number))
        except OSError:  # on another disk
            with path.open("rb") as file:
                return self.put(bucket, name, file.read, length=path.stat().st_size)
        sync_directory(self.root)
        return self._accept(Entry(number, bucket, name, path.stat().st_size, md5))

    def delete(self, bucket: str, name: str) -> None:
        """Forget the object, and have it deleted in the bucket."""
        self._accept(Entry(self._next_number(), bucket, name, 0, "", deleted=True))

    # -- asking -------------------------------------------------------------------------------

    def path(self, number: int) -> Path:
        return self.root / f"{number:08d}"

    def find(self, bucket: str, name: str) -> Entry | None:
        with self._lock:
            return self._entries.get((bucket, name))

    def entries(self, bucket: str | None = None, prefix: str = "") -> list[Entry]:
        """The newest entry of each name, in the order of names."""
        with self._lock:
            found = [
                entry
                for entry in self._entries.values()
                if bucket in (None, entry.bucket) and entry.name.startswith(prefix)
            ]
        return sorted(found, key=lambda entry: entry.key)

    def refused(self) -> list[tuple[str, str, int | None]]:
        """Bucket, name, and size as far as it was said, of what was to be taken in and was not, nor
        later under the same name."""
        with self._lock:
            return list(self._promised.values())

    def pending(self) -> list[Entry]:
        """What the bucket does not have yet, oldest first."""
        with self._lock:
            return list(self._pending.values())

    @property
    def is_pending(self) -> bool:
        """Whether the bucket lacks anything."""
        return bool(self._pending)

    def next_pending(self, is_free: Callable[[Entry], bool]) -> Entry | None:
        """The oldest entry that the bucket does not have and that ``is_free``."""
        with self._lock:
            return next((entry for entry in self._pending.values() if is_free(entry)), None)

    # -- from the uploader --------------------------------------------------------------------

    def mark_done(self, entry: Entry, stored: StoredObject | None) -> None:
        """The bucket has ``entry`` (as ``stored``), or has deleted it (None)."""
        with self._lock:
            if self._entries.get(entry.key) != entry:
                return  # overwritten meanwhile: the newer entry is still to go
            done = replace(entry, done=True)
            if stored is not None:
                done = replace(done, crc32c=stored.crc32c, generation=stored.generation)
            with suppress(OSError):  # a full disk: a restart would upload it again
                self._write(done)
            self._note(done)

    def add_copy(self, entry: Entry, copy: StoredObject) -> None:
        """The bucket holds ``entry``'s bytes as ``copy`` too: both names are known from now on."""
        with self._lock:
            self._number += 1
            number = self._number
            if self.path(entry.number).exists():
                os.link(self.path(entry.number), self.path(number))
                sync_directory(self.root)
        done = replace(entry, done=True, crc32c=copy.crc32c, generation=copy.generation)
        self._accept(replace(done, number=number, name=copy.name))

    def mark_pending(self, entry: Entry) -> bool:
        """The bucket turned out not to hold ``entry``; False when no copy is left here."""
        with self._lock:
            if not self.path(entry.number).exists():
                return False
            self._note(replace(entry, done=False))
            self._pending.move_to_end(entry.key, last=False)
        self.on_change()
        return True

    def close(self) -> None:
        self._index.close()

    # -- inside -------------------------------------------------------------------------------

    def _accept(self, entry: Entry) -> Entry:
        with self._lock:
            before = self._entries.get(entry.key)
            if before is not None and before.number > entry.number:
                self._keep_promises(*entry.key)
                self.path(entry.number).unlink(missing_ok=True)  # a later write was faster
                return before
            try:
                self._write(entry)
            except OSError:
                self.path(entry.number).unlink(missing_ok=True)
                raise
            self._note(entry)
            self._keep_promises(*entry.key)
            if before is not None:
                self.path(before.number).unlink(missing_ok=True)
        self.on_change()
        return entry

    def _note(self, entry: Entry) -> None:
        self._entries[entry.key] = entry
        self._pending.pop(entry.key, None)
        if not entry.done:
            self._pending[entry.key] = entry

    def _next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def _promise(self, number: int, bucket: str, name: str, length: int | None) -> None:
        """Note that a file is on its way, so that its loss is known, after a crash as well."""
        with self._lock:
            self._keep_promises(bucket, name)
            self._promised[number] = (bucket, name, length)
        self._promise_file(number).write_text(json.dumps([bucket, name, length]))

    def _keep_promises(self, bucket: str, name: str) -> None:
        kept = [n for n, promised in self._promised.items() if promised[:2] == (bucket, name)]
        for number in kept:
            del self._promised[number]
            self._promise_file(number).unlink(missing_ok=True)

    def _promise_file(self, number: int) -> Path:
        return self.root / f"{number:08d}.promised"

    def _write(self, entry: Entry) -> None:
        line = json.dumps(asdict(entry)).encode() + b"\n"
        append(self._index.fileno(), line, "spool")
        os.fdatasync(self._index.fileno())

    def _knows(self, md5: str) -> bool:
        with self._lock:
            return any(entry.md5 == md5 for entry in self._entries.values() if not entry.deleted)

    def _make_room(self, wanted: int) -> None:
        """Drop uploaded copies, largest first, while the disk is short; refuse when it is full."""
        free = shutil.disk_usage(self.root).free - wanted
        if free < LOW_WATER_BYTES:
            self._tell_low(free)
            with self._lock:
                done = [entry for entry in self._entries.values() if entry.done]
            for entry in sorted(done, key=lambda entry: -entry.size):
                self.path(entry.number).unlink(missing_ok=True)
                free = shutil.disk_usage(self.root).free - wanted
                if free >= LOW_WATER_BYTES:
                    break
        if free < FULL_BYTES:
            raise _full(self.root, f"{wanted} bytes are to be taken in")

    def _tell_low(self, free: int) -> None:
        if not self._is_low:
            self._is_low = True
            self._say(
                f"the instance's disk runs full: {max(0, free) / 1024**2:.0f} MB are left; local "
                "copies of uploaded artifacts are dropped"
            )

    def _load(self) -> None:
        for raw in _index_lines(self._index_file):
            entry = Entry(**raw)
            self._number = max(self._number, entry.number)
            self._note(entry)
        for entry in list(self._pending.values()):
            # Only an uploaded one is dropped; that it was could not be noted on a full disk.
            if not entry.deleted and not self.path(entry.number).exists():
                self._note(replace(entry, done=True))
        kept = {self.path(entry.number).name for entry in self._entries.values()}
        for file in self.root.iterdir():
            if file.suffix == ".promised" and (promised := read_json(file)) is not None:
                self._number = max(self._number, int(file.stem))
                self._promised[int(file.stem)] = (promised[0], promised[1], promised[2])
            elif file.name not in kept and file != self._index_file:
                file.unlink()  # never acknowledged, or overwritten since


def _receive(path: Path, read: Callable[[int], bytes]) -> tuple[int, str]:
    digest = hashlib.md5(usedforsecurity=False)
    size = looked_at = 0
    with path.open("wb") as file:
        while chunk := read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            if size - looked_at >= _LOOK_EVERY_BYTES:
                looked_at = size
                if shutil.disk_usage(path.parent).free < FULL_BYTES:
                    raise OSError(f"{size} bytes of it were taken in")
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _index_lines(file: Path) -> list[dict[str, Any]]:
    """The index's records; a last line cut short by a crash was never acknowledged, and what else
    cannot be read must not keep the agent from the rest."""
    if not file.exists():
        return []
    whole, _, torn = file.read_bytes().rpartition(b"\n")
    if torn:
        os.truncate(file, len(whole) + 1 if whole else 0)
    records = []
    for line in whole.splitlines():
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def _full(root: Path, what: str) -> RelayError:
    free = shutil.disk_usage(root).free / 1024**2
    return RelayError(
        "INSUFFICIENT_STORAGE",
        f"the instance's disk is full: {what}, {free:.0f} MB are free. Give the machine a larger "
        "disk (machine.disk_gb), or log fewer or smaller files.",
    )
