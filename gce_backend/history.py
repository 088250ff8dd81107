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
    """How long instances have existed, over all attempts, as far as was seen.

    An attempt that was asked for again had come to nothing before; one that nothing is known of
    but the asking never was.
    """
    lives: dict[int, list[float]] = {}
    for event in sorted(events, key=lambda each: (each.attempt, each.at)):
        if event.phase is Phase.CREATING:
            lives[event.attempt] = [event.at]
        elif event.phase is not Phase.QUEUED:
            lives.setdefault(event.attempt, [event.at]).append(event.at)
    return sum(life[-1] - life[0] for life in lives.values())


def _is_known(event: Event, events: list[Event]) -> bool:
    life: list[Event] = []  # of the instance that was asked for last
    for each in events:
        if each.attempt == event.attempt:
            life = [each] if each.phase is Phase.CREATING else [*life, each]
    if event.phase is Phase.CREATING:
        return any(each.phase is event.phase and each.at == event.at for each in life)
    if life and life[-1].phase is Phase.DELETED:
        return True  # whoever comes back and looks again adds nothing
    if event.phase in _REPEATED:
        return bool(life) and life[-1].phase is event.phase
    return any(each.phase is event.phase and each.why == event.why for each in life)


def _plain(events: Iterable[Event]) -> list[dict[str, Any]]:
    return [{**asdict(event), "phase": event.phase.value} for event in events]
