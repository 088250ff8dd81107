"""How many more instances may run: a limit of the user's, and what the region's quotas leave.

Compute Engine has the last word, an insert may still be refused; this keeps a sweep from asking
two hundred times for what sixty-four can have.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gce_backend.config import Settings
from gce_backend.errors import ComputeError
from gce_backend.quota import Quotas, free_quotas, needed_quota
from gce_backend.rest import Rest, compute_rest

_FRESH_SECONDS = 20.0


@dataclass(frozen=True)
class Shortage:
    """A quota that leaves less than one instance takes."""

    region: str
    metric: str
    needed: float
    left: float

    def __str__(self) -> str:
        left = f"{self.left:g} {'is' if self.left in (0, 1) else 'are'} left"
        return f"{self.needed:g} of {self.metric} in {self.region}, where {left}"


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

    def reserve(self, job: int, settings: Settings, *, anyway: bool = False) -> Settings | None:
        """``settings`` with the zones whose region has room, or None when none has.

        What is reserved is given back by `release`; once the instance `exists`, the region's own
        figures count it.

        Args:
            anyway: reserve without room, in all zones.
        """
        with self._lock:
            zones = [
                zone
                for zone in settings.zones
                if anyway or not self._lacking(_region(zone), settings)
            ]
            if not zones:
                return None
            region = _region(zones[0])
            self._in_flight[job] = (region, self._wanted(region, settings), None)
            return dataclasses.replace(settings, zones=tuple(zones))

    def lacking(self, settings: Settings) -> list[Shortage]:
        """What an instance lacks now: the first quota of each region that is too small."""
        with self._lock:
            regions = dict.fromkeys(_region(zone) for zone in settings.zones)
            return [short for region in regions for short in self._lacking(region, settings)[:1]]

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

    def _lacking(self, region: str, settings: Settings) -> list[Shortage]:
        read_at, free = self._free(region)
        wanted = self._wanted(region, settings)
        for other, used, existed_at in self._in_flight.values():
            if other == region and (existed_at is None or existed_at > read_at):
                free = {metric: left - used.get(metric, 0.0) for metric, left in free.items()}
        return [
            Shortage(region, metric, number, max(0.0, free[metric]))
            for metric, number in wanted.items()
            if metric in free and free[metric] < number
        ]

    def _free(self, region: str) -> tuple[float, Quotas]:
        known = self._known.get(region)
        if known is None or self._clock() - known[0] > _FRESH_SECONDS:
            at = self._clock()
            known = self._known[region] = (at, self._read(region))
        return known


def quota_reader(settings: Settings) -> Callable[[str], Quotas]:
    """What a region's quotas leave, by Compute Engine; nothing is known where it refuses."""
    rest: Rest = compute_rest(settings.endpoints.compute)

    def read(region: str) -> Quotas:
        path = f"projects/{settings.project}/regions/{region}"
        try:
            return free_quotas(rest.get(f"reading the quotas of {region}", path))
        except ComputeError:
            return {}

    return read


def _region(zone: str) -> str:
    return zone.rpartition("-")[0]
