"""Threads that bring the spool to the bucket, and try until the bucket takes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .endpoint import retrying
from .errors import CloudError
from .spool import Entry, Spool
from .storage import Storage

THREADS = 4
_ATTEMPT_S = 120.0  # retries inside one attempt; then the name goes to the back of the queue
_MAX_PAUSE_S = 15.0


class Uploader:
    """Uploads whatever the spool holds and the bucket does not. One name at a time is with at
    most one thread: an older content can never land on top of a newer one.

    Args:
        ahead: brings the journal, until a unix time at most; CloudError when it cannot. What was
            logged before a file is in the bucket before the file: a run that goes on from a
            checkpoint after its disk was lost logs nothing of the steps before it again.
    """

    def __init__(
        self,
        spool: Spool,
        storage: Storage,
        say: Callable[[str], None],
        ahead: Callable[[float], None] = lambda until: None,
    ) -> None:
        self._spool, self._storage, self._say, self._ahead = spool, storage, say, ahead
        self._changed = threading.Condition()
        self._in_flight: set[tuple[str, str]] = set()
        self._not_before: dict[tuple[str, str], tuple[float, float]] = {}  # when, pause
        self._stopped = False
        self.last_error = ""
        spool.on_change = self._wake
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"upload-{index}")
            for index in range(THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(5)

    def drain(self, until: float) -> list[Entry]:
        """Wait until nothing is pending or time is up; returns what is still pending."""
        with self._changed:
            while self._spool.is_pending and time.time() < until:
                self._changed.wait(min(1.0, max(0.0, until - time.time())))
        return self._spool.pending()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            try:
                self._bring(entry)
            except Exception as error:  # whatever is wrong with one, the others go on
                self._postpone(entry, error)
            else:
                self._not_before.pop(entry.key, None)
            finally:
                with self._changed:
                    self._in_flight.discard(entry.key)
                    self._changed.notify_all()

    def _next(self) -> Entry | None:
        """The oldest pending entry that nobody has in hand; None when stopped."""
        with self._changed:
            while not self._stopped:
                if (entry := self._spool.next_pending(self._is_free)) is not None:
                    self._in_flight.add(entry.key)
                    return entry
                self._changed.wait(0.5)
            return None

    def _is_free(self, entry: Entry) -> bool:
        due = self._not_before.get(entry.key, (0.0, 0.0))[0]
        return entry.key not in self._in_flight and due <= time.time()

    def _bring(self, entry: Entry) -> None:
        self._bring_journal()
        if entry.deleted:
            self._storage.delete(entry.bucket, entry.name)
            self._spool.mark_done(entry, None)
            return
        path = self._spool.path(entry.number)

        def once() -> None:
            try:
                stored = self._storage.put_file(
                    entry.bucket, entry.name, path, size=entry.size, md5=entry.md5
                )
            except FileNotFoundError:
                return  # overwritten meanwhile: the newer entry has its own turn
            self._spool.mark_done(entry, stored)

        retrying(once, time.time() + _ATTEMPT_S, give_up=lambda: self._stopped)

    def _bring_journal(self) -> None:
        try:
            self._ahead(time.time() + _ATTEMPT_S)
        except CloudError as error:
            if error.status != 412:  # its name is taken for good: files cannot wait for that
                raise

    def _postpone(self, entry: Entry, error: Exception) -> None:
        self.last_error = str(error)
        pause = min(_MAX_PAUSE_S, 2 * self._not_before.get(entry.key, (0.0, 0.5))[1])
        self._not_before[entry.key] = (time.time() + pause, pause)
        self._say(
            f"upload of gs://{entry.bucket}/{entry.name} failed, will be tried again: {error}"
        )
