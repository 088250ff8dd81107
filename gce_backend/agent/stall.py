"""Whether the trainer still lives: a hung one prints nothing, logs nothing and uses no processor.

A training that waits for a GPU keeps a processor busy, and one that waits for the network forever
is what this is for. What is done about it is the caller's business.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

# Of one processor, on average over the window: below it is the noise of idle threads.
_BUSY_SHARE = 0.01
_MAX_POLL_S = 30.0


class StallWatch:
    """A thread that calls ``tell(since)`` when the signs of life have stood still for ``window``
    seconds, and ``tell(None)`` when they move again.

    Args:
        signs: anything that compares; changes with every sign of life.
        cpu_seconds: processor time used so far.
        tell: takes the unix seconds of the last sign.
    """

    def __init__(
        self,
        signs: Callable[[], Any],
        cpu_seconds: Callable[[], float],
        window: float,
        tell: Callable[[float | None], None],
    ) -> None:
        self._signs, self._cpu_seconds = signs, cpu_seconds
        self._window, self._tell = window, tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="stall")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(5)

    def _run(self) -> None:
        last_sign, last_change = self._signs(), time.monotonic()
        used = deque([(last_change, self._cpu_seconds())])
        told = False
        while not self._over.wait(min(_MAX_POLL_S, self._window / 20)):
            now, sign, cpu = time.monotonic(), self._signs(), self._cpu_seconds()
            used.append((now, cpu))
            while len(used) > 1 and used[1][0] <= now - self._window:
                used.popleft()
            if sign != last_sign:
                last_sign, last_change = sign, now
            # Less than before is a sign too: a process has ended, and took its share along.
            is_busy = abs(cpu - used[0][1]) > _BUSY_SHARE * self._window
            watched = now - used[0][0] >= self._window
            stalled = watched and not is_busy and now - last_change >= self._window
            if stalled != told:
                told = stalled
                self._tell(time.time() - (now - last_change) if stalled else None)
