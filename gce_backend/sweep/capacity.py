"""How many more instances may run: a limit of the user's, and what the region's quotas leave.

Compute Engine has the last word, an insert may still be refused; this keeps a sweep from asking
two hundred times for what sixty-four can have.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from gce_backend.config import Settings
from gce_backend.quota import Quotas, needed_quota

_FRESH_SECONDS = 20.0


class Capacity:
    """Safe to use from several threads.

    Args:
        read: a region's name to its quotas; asked again when what is known is 20 s old.
    """

    def __init__(
        self, read: Callable[[str], Quotas], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Quotas]] = {}
        self._in_flight: dict[int, tuple[str, Quotas, float | None]] = {}

    def reserve(self, job: int, settings: Settings) -> Settings | None:
        """``settings`` with the zones whose region has room, or None when none has.

        What is reserved is given back by `release`; once the instance `exists`, the region's own
        figures count it.
        """
        with self._lock:
            zones = [zone for zone in settings.zones if self._has_room(_region(zone), settings)]
            if not zones:
                return None
            region = _region(zones[0])
            self._in_flight[job] = (region, self._wanted(region, settings), None)
            return dataclasses.replace(settings, zones=tuple(zones))

    def exists(self, job: int) -> None:
        """The job's instance has been created: figures read from now on include it."""
        with self._lock:
            if job in self._in_flight:
                region, wanted, _ = self._in_flight[job]
                self._in_flight[job] = (region, wanted, self._clock())

    def release(self, job: int) -> None:
        """The job has no instance any more, or never got one."""
        with self._lock:
            self._in_flight.pop(job, None)

    def _wanted(self, region: str, settings: Settings) -> Quotas:
        known = self._free(region)[1]
        return needed_quota(settings.machine, known=known, external_ip=settings.gce.external_ip)

    def _has_room(self, region: str, settings: Settings) -> bool:
        read_at, free = self._free(region)
        wanted = self._wanted(region, settings)
        for other, used, existed_at in self._in_flight.values():
            if other == region and (existed_at is None or existed_at > read_at):
                free = {metric: left - used.get(metric, 0.0) for metric, left in free.items()}
        return all(free[metric] >= number for metric, number in wanted.items() if metric in free)

    def _free(self, region: str) -> tuple[float, Quotas]:
        known = self._known.get(region)
        if known is None or self._clock() - known[0] > _FRESH_SECONDS:
            at = self._clock()
            known = self._known[region] = (at, self._read(region))
        return known


def _region(zone: str) -> str:
    return zone.rpartition("-")[0]
