"""The end of an attempt: everything into the bucket, proven, then ``status.json``, last of all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bundle, manifest
from .endpoint import retrying
from .errors import CloudError, RelayError
from .files import size_of
from .locations import name_fault
from .log import RunLog
from .segments import Segments
from .spec import Spec
from .spool import Entry, Spool
from .state import Ending, State
from .stop import PREEMPTED
from .storage import Storage, StoredObject
from .uploader import Uploader

STATUS_VERSION = 1
_ROUND_S = 30.0
_PAUSE_S = 2.0
# Writing manifest and status is tried so long past everything else: without them nobody knows.
_LAST_WORDS_S = 120.0


@dataclass
class Results:
    """What the run left on this instance, with what brings it to the bucket."""

    spec: Spec
    state: State
    spool: Spool
    uploader: Uploader
    segments: dict[str, Segments]
    journal_records: int


class Collector:
    """Args:
    settle: called once when everything is in the bucket, before the manifest: the tracking
        server may get it too, whereby files move. None where no server is written to from here.
    """

    def __init__(
        self,
        storage: Storage,
        results: Results,
        log: RunLog,
        over: threading.Event,
        settle: Callable[[float], bool] | None = None,
    ) -> None:
        self._storage, self._results, self._log, self._over = storage, results, log, over
        self._settle = settle

    def collect(self, ending: Ending, facts: dict[str, Any], until: float) -> dict[str, Any]:
        """Drain, verify, write; tries again until ``until``. Returns what status.json says."""
        self._save_refused()
        if ending.end_reason != "succeeded":
            self._save_leftovers(ending.end_reason)
        lacking = self._requirements(ending)
        for line in lacking:
            self._log.say(line)
        self._over.set()  # the log is complete: the background senders stop, the last words go here
        objects, missing = self._rounds(until)
        # A preempted run goes on: its next attempt still knows the files by their present names.
        if self._settle is not None and ending.end_reason != PREEMPTED:
            facts = {**facts, "forwarded": not missing and self._settle(until)}
            objects, missing = self._rounds(until)
        return self._write(ending, facts, objects, missing + lacking, until)

    def _rounds(self, until: float) -> tuple[list[StoredObject], list[str]]:
        while True:
            objects, missing = self._round(until)
            if not missing or time.time() >= until:
                return objects, missing
            time.sleep(_PAUSE_S)

    def _round(self, until: float) -> tuple[list[StoredObject], list[str]]:
        """Send what is left, then hold the bucket against what we sent."""
        results, soon = self._results, min(until, time.time() + _ROUND_S)
        problems: list[str] = []
        pending = results.uploader.drain(soon)
        for entry in pending:
            why = results.uploader.last_error or "the upload has not ended"
            problems.append(f"gs://{entry.bucket}/{entry.name}: {why}")
        expected = [_as_stored(entry) for entry in results.spool.entries() if _uploaded(entry)]
        for kind, segments in results.segments.items():
            try:
                segments.send_new(soon)
            except (CloudError, OSError) as error:
                problems.append(f"{kind}: {segments.pending_bytes} bytes are not sent: {error}")
            expected += segments.stored
        try:
            comparison = manifest.compare(self._storage, expected, soon)
        except CloudError as error:
            return [], [*problems, f"the bucket could not be listed: {error}"]
        for item, problem in comparison.missing:
            self._send_again(item)
            problems.append(problem)
        return comparison.objects, problems

    def _send_again(self, item: StoredObject) -> None:
        entry = self._results.spool.find(item.bucket, item.name)
        if entry is not None:
            self._results.spool.mark_pending(entry)

    def _requirements(self, ending: Ending) -> list[str]:
        """A line for each artifact that a successful run must have and has not."""
        spec = self._results.spec
        if ending.end_reason != "succeeded":
            return []
        bucket, _, root = spec.artifact_uri.removeprefix("gs://").partition("/")
        return [
            f"required artifact '{path}' was not logged"
            for path in spec.require
            if not self._exists(bucket, f"{root}/{path}")
        ]

    def _exists(self, bucket: str, name: str) -> bool:
        """In the spool, or in the bucket from an earlier attempt."""
        entry = self._results.spool.find(bucket, name)
        if entry is not None:
            return not entry.deleted
        try:
            until = time.time() + _ROUND_S
            return retrying(lambda: self._storage.stat(bucket, name), until) is not None
        except CloudError:
            return False

    def _save_refused(self) -> None:
        """Artifacts whose upload broke off, or had no room on the disk: the trainer may have gone
        on all the same, and left the file where it was."""
        results = self._results
        for bucket, name, size in results.spool.refused():
            try:
                for path in _newest_first(results.state.work, name.rpartition("/")[2]):
                    if size in (None, path.stat().st_size):
                        results.spool.put_file(bucket, name, path, link=True)
                        self._log.say(f"{path.name}: its upload failed; taken from {path.parent}")
                        break
                else:
                    self._log.say(f"gs://{bucket}/{name}: its upload failed, and it is not there")
            except (OSError, RelayError) as error:
                self._log.say(f"gs://{bucket}/{name}: its upload failed: {error}")

    def _save_leftovers(self, reason: str) -> None:
        """After a bad end: what the working directory gained, as artifacts under ``workdir/``."""
        results = self._results
        bucket, _, root = results.spec.artifact_uri.removeprefix("gs://").partition("/")
        work = results.state.work
        if not work.exists():
            return
        limit = bundle.LEFTOVER_MAX_BYTES
        if reason == PREEMPTED:
            limit = bundle.PREEMPTED_MAX_BYTES
        goes_on = reason == PREEMPTED  # the next attempt looks for them where they lay
        kept, left_out = bundle.leftovers(work, limit)
        for path in kept:
            name = f"{root}/workdir/{_as_text(path, work)}"
            if fault := name_fault(name):
                self._log.say(f"…{name[-100:]} of the working directory was left out: {fault}")
                continue
            try:
                results.spool.put_file(bucket, name, path, unless_known=not goes_on, link=goes_on)
            except (OSError, RelayError) as error:
                self._log.say(f"{path.name} of the working directory was not saved: {error}")
        if left_out:
            names = ", ".join(_as_text(path, work) for path in left_out[:5])
            self._log.say(
                f"{len(left_out)} new files of the working directory were left out, more than "
                f"{limit // 1024**2} MB in all: {names}"
            )

    def _write(
        self,
        ending: Ending,
        facts: dict[str, Any],
        objects: list[StoredObject],
        missing: list[str],
        until: float,
    ) -> dict[str, Any]:
        results = self._results
        spec, log, journal = results.spec, results.segments["log"], results.segments["journal"]
        status = {
            "version": STATUS_VERSION,
            "run_id": spec.run_id,
            "attempt": spec.attempt,
            **facts,
            "end_reason": ending.end_reason,
            "exit_code": ending.exit_code,
            "message": ending.message,
            "started_at": results.state.memory.started_at,
            "ended_at": ending.ended_at,
            "written_at": time.time(),
            "phases": results.state.memory.phases,
            "log_segments": log.count,
            "log_bytes": size_of(log.file),
            "journal_segments": journal.count,
            "journal_records": results.journal_records,
            "verified": not missing,
            "missing": missing,
        }
        last = max(until, time.time() + _LAST_WORDS_S)
        listed = manifest.to_json(spec.run_id, spec.attempt, objects)
        self._put(spec.paths.manifest, listed, last)
        self._put(spec.paths.status, status, last)
        return status

    def _put(self, name: str, value: dict[str, Any], until: float) -> None:
        data = json.dumps(value).encode()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        bucket = self._results.spec.bucket
        retrying(lambda: self._storage.put(bucket, name, data, md5=md5), until)


def _as_text(path: Path, root: Path) -> str:
    """Relative to ``root``; what no object's name may hold, or should, as \\xNN: what is no UTF-8,
    and control characters."""
    text = os.fsencode(path.relative_to(root)).decode(errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _newest_first(root: Path, name: str) -> list[Path]:
    """The regular files of that name below ``root``."""
    found = [Path(directory) / name for directory, _, files in os.walk(root) if name in files]
    regular = [path for path in found if path.is_file() and not path.is_symlink()]
    return sorted(regular, key=lambda path: -path.stat().st_mtime)


def _uploaded(entry: Entry) -> bool:
    return entry.done and not entry.deleted


def _as_stored(entry: Entry) -> StoredObject:
    return StoredObject(
        entry.bucket, entry.name, entry.size, entry.md5, entry.crc32c, entry.generation
    )
