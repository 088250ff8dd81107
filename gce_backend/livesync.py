"""The journal applied to the tracking store while a run is followed, in a thread of its own.

A store that hangs or is away must delay neither the log nor the deletion of the instance.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from gce_backend.errors import GceBackendError, StorageError, TrackingError
from gce_backend.polling import retry
from gce_backend.sync import JournalApplier
from gce_backend.tracking import Tracking

# Half of what the agent takes for a piece of the journal; a GET that finds nothing costs next to
# nothing ($0.0000004).
_PAUSE_SECONDS = 0.5
_MOST_PAUSE_SECONDS = 15.0
_HOLD_SECONDS = 5.0
_TELLING_SECONDS = 15.0  # a store that hangs for longer hangs for whoever writes next as well


class LiveSync:
    """Applies new segments until it is stopped.

    Args:
        warn: told once when the store goes away, and once when it is back.
    """

    def __init__(
        self, applier: JournalApplier, tracking: Tracking, run_id: str, warn: Callable[[str], None]
    ) -> None:
        self._applier = applier
        self._tracking = tracking
        self._run_id = run_id
        self._warn = warn
        self._stop = threading.Event()
        self._running = threading.Event()
        self._telling = threading.Lock()  # while the run's status is written
        self._is_away = False
        self._thread = threading.Thread(target=self._work, name="mlflow-gce-sync", daemon=True)

    def __enter__(self) -> LiveSync:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not joined: a call to a store that hangs must not delay the instance's deletion. Whoever
        # applies next waits for it at the applier's lock.
        self._stop.set()

    def end(self) -> None:
        """Stop, and let nothing of it come later: it may be saying just now that the run runs."""
        self._stop.set()
        if self._telling.acquire(timeout=_TELLING_SECONDS):
            self._telling.release()

    def mark_running(self) -> None:
        """The entry point has started: the run's status says so as soon as the store answers."""
        self._running.set()

    def _work(self) -> None:
        pause, told_running = _PAUSE_SECONDS, False
        while not self._stop.wait(pause):
            try:
                # Another client may follow too, or the instance apply it itself.
                self._applier.apply_new(patience=0, hold=_HOLD_SECONDS)
                if self._running.is_set() and not told_running:
                    self._tell_running()
                    told_running = True
            except Exception as error:
                # MLflow lets through what its drivers raise; none of it may end this thread.
                self._went_away(error)
                pause = min(pause * 2, _MOST_PAUSE_SECONDS)
            else:
                self._came_back()
                pause = _PAUSE_SECONDS
        self._applier.let_go()

    def _tell_running(self) -> None:
        with self._telling:
            if not self._stop.is_set():  # else its end may be written by now
                self._tracking.set_running(self._run_id)

    def _went_away(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            told = str(error) if isinstance(error, GceBackendError) else repr(error)
            where = "on the instance" if isinstance(error, StorageError) else "in the bucket"
            self._warn(f"{told}\nThe training goes on; its metrics wait {where}")

    def _came_back(self) -> None:
        if self._is_away:
            self._is_away = False
            self._warn("metrics reach the tracking store again")


def until_store_answers(write: Callable[[], None], run_id: str, *, seconds: float) -> None:
    """Call ``write`` until the store lets it through, for ``seconds`` at most.

    Raises:
        TrackingError: the store stayed away; everything is safe in the bucket.
    """
    try:
        retry(
            write,
            is_transient=lambda error: isinstance(error, TrackingError) and error.transient,
            seconds=seconds,
            first=_PAUSE_SECONDS,
            most=_MOST_PAUSE_SECONDS,
        )
    except TrackingError as error:
        what = f"stayed away for {seconds:.0f} s" if error.transient else "refuses"
        raise TrackingError(
            f"the tracking store {what} ({error}). Nothing is lost: "
            "metrics, parameters and artifacts are in the bucket. When the store is back, run:\n"
            f"  mlflow-gce sync {run_id}"
        ) from error
