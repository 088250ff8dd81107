"""The training's log as it is printed: over SSH while that works, from the bucket otherwise.

Both are the same bytes at the same offsets: the instance's file, and the pieces the agent cut from
it. One number says how far the log has been shown, so that nothing is missing and nothing comes
twice, whoever brings it. Losing SSH changes nothing else.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from gce_backend.console import Console
from gce_backend.errors import (
    AuthenticationRefused,
    ComputeError,
    GceBackendError,
    InstanceNotFound,
    SshUnavailable,
    StorageError,
)
from gce_backend.ssh import Connection
from gce_backend.ssh_frames import (
    ALIVE_SECONDS,
    FOLLOW,
    STATE_DIRECTORY,
    command,
    first_piece,
    frames,
)
from gce_backend.storage import Storage
from gce_backend.submission import Submission

_BOOT_PATIENCE_SECONDS = 120.0  # before the bucket's log is called a stopgap
_LOSS_PATIENCE_SECONDS = 30.0
_PIECES_AT_ONCE = 8  # of up to 1 MiB: what a late attach holds in memory
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class Access(Protocol):
    """Whoever opens connections; ``SshAccess`` does."""

    def connect(self) -> Connection: ...


class LiveLog:
    """Shows one run's log on a console, from its beginning. Also a context manager.

    Args:
        access: None where there is no SSH; then the log comes from the bucket without a word.
    """

    def __init__(
        self, submission: Submission, storage: Storage, access: Access | None, console: Console
    ) -> None:
        self._submission = submission
        self._storage = storage
        self._access = access
        self._console = console
        self._lock = threading.Lock()
        self._shown = 0  # bytes
        self._piece = 0  # the last piece of the bucket that was looked at …
        self._piece_end = 0  # … and where it ends
        self._is_live = False
        self._stop = threading.Event()
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._has_told = False
        self._silent_since = time.monotonic()
        self._patience = _BOOT_PATIENCE_SECONDS

    def __enter__(self) -> LiveLog:
        self._begin_live()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_live()

    def show_new(self) -> None:
        """Show what the bucket has and nobody has shown; nothing while SSH brings it.

        Raises:
            StorageError: the bucket does not answer.
        """
        if not self._is_live:
            self._show_from_bucket()

    def finish(self) -> None:
        """The run has ended: leave SSH, and show the rest, to the last byte in the bucket.

        Raises:
            StorageError: the bucket does not answer.
        """
        self._end_live()
        self._show_from_bucket()

    def go_on(self, submission: Submission, access: Access | None) -> None:
        """The run goes on: its instance was started again, or another attempt was made."""
        self._end_live()
        self._submission, self._access = submission, access
        self._silent_since, self._patience = time.monotonic(), _BOOT_PATIENCE_SECONDS
        self._begin_live()

    # ------------------------------------------------------------------ the bucket

    def _show_from_bucket(self) -> None:
        self._pass_over_shown()
        paths = self._submission.paths
        count = 1  # while one follows, there is one more at most
        while pieces := self._storage.read_log(paths, self._piece, count):
            count = _PIECES_AT_ONCE
            for number, data in pieces:
                self._show(self._piece_end, data)
                self._piece, self._piece_end = number, self._piece_end + len(data)

    def _pass_over_shown(self) -> None:
        """Skip pieces that SSH has shown whole, without fetching them."""
        if self._shown <= self._piece_end:
            return
        paths = self._submission.paths
        sizes = {info.name: info.size for info in self._storage.list(paths.log_dir)}
        while (size := sizes.get(paths.log(self._piece + 1))) is not None:
            if self._piece_end + size > self._shown:
                return
            self._piece, self._piece_end = self._piece + 1, self._piece_end + size

    def _show(self, at: int, data: bytes) -> None:
        """Show what is new of ``data``, which is the log's from offset ``at`` on."""
        with self._lock:
            new = data[max(0, self._shown - at) :]
            self._shown = max(self._shown, at + len(data))
            self._console.log(new)

    # ------------------------------------------------------------------ SSH

    def _begin_live(self) -> None:
        self._stop = threading.Event()  # a new one: a thread that is slow to end keeps its own
        if self._access is not None and not self._console.is_quiet:
            self._thread = threading.Thread(
                target=self._follow, args=(self._access, self._stop), daemon=True, name="live-log"
            )
            self._thread.start()

    def _follow(self, access: Access, stop: threading.Event) -> None:
        """Connect again and again; ends with the run, or on what no patience mends."""
        pause = _FIRST_PAUSE
        while not stop.is_set():
            try:
                with self._connected(access) as connection:
                    self._stream(connection, stop)
            except InstanceNotFound:
                pass  # the follower finds out, and knows what it means
            except (SshUnavailable, AuthenticationRefused, ComputeError, StorageError) as error:
                # A key that is refused may not have been entered yet: the instance boots.
                self._tell_late(error, stop)
            except GceBackendError as error:
                self._lose()
                self._tell(error, stop)
                return
            except Exception as error:  # whatever breaks here, the run is followed on
                self._tell_late(SshUnavailable(f"the log's SSH session broke: {error!r}"), stop)
            if self._lose():
                pause = _FIRST_PAUSE
            stop.wait(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    @contextlib.contextmanager
    def _connected(self, access: Access) -> Iterator[Connection]:
        with access.connect() as connection:
            self._connection = connection
            try:
                yield connection
            finally:
                self._connection = None

    def _stream(self, connection: Connection, stop: threading.Event) -> None:
        base = self._base(connection, stop)
        at = self._shown
        words = (f"{STATE_DIRECTORY}/run.log", str(at - base), str(ALIVE_SECONDS))
        channel = connection.start(command(FOLLOW, *words))
        for data in frames(channel, connection.instance):
            if stop.is_set():
                return
            self._is_live = True
            self._show(at, data)
            at += len(data)
        raise SshUnavailable(f"instance {connection.instance!r} ended the log's session")

    def _base(self, connection: Connection, stop: threading.Event) -> int:
        """Where the instance's file begins in the run's log: behind what earlier attempts left.

        Comes back once all of that has been shown, from the bucket.
        """
        if self._submission.attempt == 1:
            return 0
        while not (first := first_piece(connection)):
            if stop.wait(_FIRST_PAUSE):
                return 0
        paths = self._submission.paths
        earlier = {paths.log(number) for number in range(1, first)}
        listed = self._storage.list(paths.log_dir)
        base = sum(info.size for info in listed if info.name in earlier)
        while self._shown < base:
            if stop.wait(_FIRST_PAUSE):
                return 0
        return base

    def _lose(self) -> bool:
        """From now on the bucket's turn; False when it was before."""
        was_live, self._is_live = self._is_live, False
        if was_live:
            self._silent_since, self._patience = time.monotonic(), _LOSS_PATIENCE_SECONDS
        return was_live

    def _tell_late(self, error: GceBackendError, stop: threading.Event) -> None:
        """SSH comes late and goes at times; only what lasts is worth a line."""
        if not self._is_live and time.monotonic() - self._silent_since > self._patience:
            self._tell(error, stop)

    def _tell(self, error: GceBackendError, stop: threading.Event) -> None:
        if not self._has_told and not stop.is_set():
            self._has_told = True
            self._console.warn(
                f"{error}\nThe log comes from the bucket, a little late; the run is not affected"
            )

    def _end_live(self) -> None:
        self._stop.set()
        if (connection := self._connection) is not None:
            connection.close()
        if self._thread is not None:
            self._thread.join(timeout=5)  # it may wait for an answer; it shows nothing any more
        self._is_live = False
