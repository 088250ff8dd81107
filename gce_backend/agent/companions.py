"""What goes along with a running trainer: system metrics, the watch on the disk and on its life."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from .disk import DiskWatch
from .log import RunLog
from .process import Trainer
from .spec import Spec
from .stall import StallWatch
from .state import State
from .stop import STALLED, Stop
from .tracking import Tracking

DISK_TAG = "gce.disk"
STALLED_TAG = "gce.stalled"


@contextlib.contextmanager
def accompany(
    spec: Spec, state: State, log: RunLog, tracking: Tracking, trainer: Trainer, stop: Stop
) -> Iterator[None]:
    """All of it for the length of the block, as far as the spec wants it."""
    notes = _Notes(log, tracking)
    threads: list[DiskWatch | StallWatch] = [DiskWatch(state.root, notes.disk)]
    if spec.stall_minutes:
        life = _Life(spec, notes, stop)
        signs = lambda: (log.trainers_bytes, tracking.writes)  # noqa: E731
        window = 60 * spec.stall_minutes
        threads.append(StallWatch(signs, trainer.cpu_seconds, window, life.tell))
    metrics = None
    if spec.system_metrics_seconds:
        metrics = tracking.system_metrics(spec.system_metrics_seconds)
        metrics.start()
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop()
        if metrics is not None:
            metrics.stop()


class _Notes:
    """What has to be known about the run: a line in its log, and a tag for as long as it holds."""

    def __init__(self, log: RunLog, tracking: Tracking) -> None:
        self._log, self._tracking = log, tracking

    def disk(self, sentence: str) -> None:
        line = f"the disk runs full: {sentence}" if sentence else "the disk has room again"
        self.note(DISK_TAG, sentence, line)

    def note(self, tag: str, value: str, line: str) -> None:
        with contextlib.suppress(OSError):  # the disk may be so full
            self._log.say(line)
        with contextlib.suppress(OSError):
            self._tracking.set_tag(tag, value) if value else self._tracking.delete_tag(tag)


class _Life:
    """What is done when the trainer shows no sign of life any more."""

    def __init__(self, spec: Spec, notes: _Notes, stop: Stop) -> None:
        self._spec, self._notes, self._stop = spec, notes, stop

    def tell(self, since: float | None) -> None:
        if since is None:
            self._notes.note(STALLED_TAG, "", "the trainer shows signs of life again")
            return
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
        what_next = (
            "it is ended now, as gce.stall_action says"
            if self._spec.stall_end
            else "it goes on billing; `mlflow-gce stop` ends it, and -P gce.stall_action=end does "
            "that by itself"
        )
        self._notes.note(
            STALLED_TAG,
            f"since {when}",
            f"no output, nothing logged and no CPU time of the trainer since {when}: {what_next}",
        )
        if self._spec.stall_end:
            self._stop.set(STALLED)
