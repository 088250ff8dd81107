"""Log and journal on their way to the bucket while the run goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from .errors import CloudError
from .history import next_number
from .log import RunLog
from .segments import Segments
from .spec import Spec
from .state import State
from .storage import Storage

# Seconds between two pieces, while there is something new. A piece is a class A operation: $0.005 a
# thousand, so a training that logs without a pause costs at most $0.018 an hour for each kind.
LOG_INTERVAL_S = 1.0
JOURNAL_INTERVAL_S = 1.0


class Shipping:
    """Two threads, one for each kind. ``segments`` has "log" and "journal"."""

    def __init__(self, storage: Storage, spec: Spec, state: State, log: RunLog) -> None:
        self._storage, self._spec, self._log = storage, spec, log
        self._trouble: dict[str, str] = {}
        paths = spec.paths
        self.segments = {
            "log": self._segments(log.path, paths.log, paths.log_dir),
            "journal": self._segments(state.journal, paths.journal, paths.journal_dir, True),
        }

    def start(self, over: threading.Event) -> None:
        """Send what is new, every second, until ``over``."""
        for kind, interval in (("log", LOG_INTERVAL_S), ("journal", JOURNAL_INTERVAL_S)):
            threading.Thread(
                target=self.segments[kind].run,
                args=(over, interval, self._noter(kind)),
                daemon=True,
                name=f"ship-{kind}",
            ).start()

    def send_all(self, until: float) -> None:
        """Send what is new now; gives up quietly, since all of it is on the disk."""
        for segments in self.segments.values():
            with contextlib.suppress(CloudError, OSError):
                segments.send_new(until)

    def counts(self) -> dict[str, int]:
        return {kind: segments.count for kind, segments in self.segments.items()}

    def _segments(
        self, file: Path, name_of: Callable[[int], str], directory: str, whole_lines: bool = False
    ) -> Segments:
        return Segments(
            self._storage,
            self._spec.bucket,
            file,
            name_of,
            first=lambda: next_number(self._storage, self._spec, directory),
            whole_lines=whole_lines,
        )

    def _noter(self, kind: str) -> Callable[[str], None]:
        """Says once that the bucket does not take it, and once that it does again."""

        def note(trouble: str) -> None:
            before, self._trouble[kind] = self._trouble.get(kind, ""), trouble
            if bool(before) != bool(trouble):
                self._log.say(f"{kind}: {trouble or 'the bucket takes it again'}")

        return note
