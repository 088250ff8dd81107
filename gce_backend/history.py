"""The phases of every attempt, kept with the run in its bucket for whoever comes back to it.

A record for people: nothing is decided by it, so writing it never fails a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.errors import StorageError
from gce_backend.lifecycle import Phase
from gce_backend.storage import Storage

# Entered more than once in one attempt: a delete that fails is tried again.
_REPEATED = (Phase.DELETING, Phase.ORPHANED)


@dataclass(frozen=True)
class Event:
    """An attempt entered a phase.

    Args:
        at: unix seconds.
    """

    attempt: int
    phase: Phase
    at: float
    why: str = ""
    zone: str = ""
    instance: str = ""


class History:
    """The history of one run: ``history.json`` in its bucket."""

    def __init__(self, storage: Storage, paths: RunPaths) -> None:
        self._storage = storage
        self._name = paths.history

    def read(self) -> list[Event]:
        """Every event, oldest first; none for a run that has no history.

        Raises:
            StorageError: the bucket did not answer.
        """
        raw = self._storage.read_json(self._name) or {}
        return [Event(**{**item, "phase": Phase(item["phase"])}) for item in raw.get("events", [])]

    def record(self, event: Event) -> None:
        """Add ``event``, unless it is known; a bucket that does not answer is let be."""
        with suppress(StorageError):
            events = self.read()
            if not _is_known(event, events):
                kept = sorted([*events, event], key=lambda each: (each.attempt, each.at))
                self._storage.put_json(self._name, {"version": 1, "events": _plain(kept)})


def seconds_used(events: Iterable[Event]) -> float:
    """How long instances have existed, over all attempts, as far as was seen."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for event in events:
        if event.phase is not Phase.QUEUED:
            first.setdefault(event.attempt, event.at)
            last[event.attempt] = max(event.at, last.get(event.attempt, event.at))
    return sum(last[attempt] - first[attempt] for attempt in first)


def _is_known(event: Event, events: list[Event]) -> bool:
    same = [each for each in events if each.attempt == event.attempt]
    if event.phase in _REPEATED:
        return bool(same) and same[-1].phase is event.phase
    return any(each.phase is event.phase and each.why == event.why for each in same)


def _plain(events: Iterable[Event]) -> list[dict[str, Any]]:
    return [{**asdict(event), "phase": event.phase.value} for event in events]
