"""The emulator's clock: wall time that tests can move forward."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime


class Clock:
    """Wall time plus what :meth:`advance` has added; used from one event loop only."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._sleepers: set[asyncio.Future[None]] = set()

    def now(self) -> float:
        """Unix seconds."""
        return time.time() + self._offset

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``; whoever sleeps to a moment now passed wakes up."""
        if seconds < 0:
            raise ValueError(f"the clock does not go back: {seconds} s")
        self._offset += seconds
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def sleep(self, seconds: float) -> None:
        await self.sleep_until(self.now() + seconds)

    async def sleep_until(self, moment: float) -> None:
        """Return once :meth:`now` has reached ``moment``."""
        while (left := moment - self.now()) > 0:
            sleeper = asyncio.get_running_loop().create_future()
            self._sleepers.add(sleeper)
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(sleeper, left)
            finally:
                self._sleepers.discard(sleeper)


def rfc3339(moment: float) -> str:
    """``2026-01-11T14:30:52.123-00:00``-like, in UTC: the API's form of a time."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
