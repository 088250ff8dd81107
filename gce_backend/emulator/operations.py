"""Operations: what the API answers a change with, and how each goes on to its end.

::

    PENDING > RUNNING > DONE          an error, if any, is set with DONE
"""

from __future__ import annotations

import asyncio
import enum
import secrets
from typing import Any

from .clock import Clock, rfc3339
from .names import new_id, url

ACCOUNT = "user@example.com"  # of the person whose calls carry no token


@enum.unique
class OperationStatus(enum.StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"


NEXT: dict[OperationStatus, frozenset[OperationStatus]] = {
    OperationStatus.PENDING: frozenset({OperationStatus.RUNNING}),
    OperationStatus.RUNNING: frozenset({OperationStatus.DONE}),
    OperationStatus.DONE: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A bug of the emulator: the table does not have this step."""


class Operation:
    """One operation of a zone, a region, or the whole project.

    Args:
        scope: ``zones/Z``, ``regions/R`` or ``global``.
        kind: the API's operationType, for example ``insert``.
        target: ``projects/…`` of the resource it acts on.
        user: e-mail of who asked; ``system`` for what nobody asked for.
    """

    def __init__(
        self,
        clock: Clock,
        project: str,
        scope: str,
        kind: str,
        target: str,
        target_id: str,
        *,
        user: str = ACCOUNT,
        request_id: str | None = None,
    ) -> None:
        self._clock = clock
        self.project = project
        self.scope = scope
        self.kind = kind
        self.target = target
        self.target_id = target_id
        self.user = user
        self.request_id = request_id
        self.id = new_id()
        self.name = f"{'systemevent' if user == 'system' else 'operation'}-{_suffix(clock)}"
        self.status = OperationStatus.PENDING
        self.failure: dict[str, Any] = {}
        self._times = {"insertTime": clock.now()}
        self._done = asyncio.Event()

    @property
    def is_done(self) -> bool:
        return self.status is OperationStatus.DONE

    def advance(self, to: OperationStatus) -> None:
        if to not in NEXT[self.status]:
            raise IllegalTransition(f"operation {self.name}: {self.status} to {to}")
        self.status = to
        if to is OperationStatus.RUNNING:
            self._times["startTime"] = self._clock.now()
        if to is OperationStatus.DONE:
            self._times["endTime"] = self._clock.now()
            self._done.set()

    def start(self) -> None:
        if self.status is OperationStatus.PENDING:
            self.advance(OperationStatus.RUNNING)

    def finish(self, failure: dict[str, Any] | None = None) -> None:
        """DONE, through RUNNING; ``failure`` as :func:`.faults.operation_error` gives it."""
        if self.is_done:
            return
        self.start()
        self.failure = failure or {}
        self.advance(OperationStatus.DONE)

    async def wait(self, seconds: float) -> None:
        """Until DONE, or until ``seconds`` have passed, as the API's ``wait`` does."""
        try:
            await asyncio.wait_for(self._done.wait(), seconds)
        except TimeoutError:
            return

    @property
    def path(self) -> str:
        return f"projects/{self.project}/{self.scope}/operations/{self.name}"

    def resource(self) -> dict[str, Any]:
        """The API's Operation."""
        place, _, name = self.scope.partition("/")
        where = {"zones": "zone", "regions": "region"}.get(place)
        return {
            "kind": "compute#operation",
            "id": self.id,
            "name": self.name,
            "operationType": self.kind,
            "targetLink": url(self.target),
            "targetId": self.target_id,
            "status": self.status.value,
            "user": self.user,
            "progress": {"PENDING": 0, "RUNNING": 50, "DONE": 100}[self.status.value],
            **{key: rfc3339(moment) for key, moment in self._times.items()},
            **({"clientOperationId": self.request_id} if self.request_id else {}),
            **({where: url(f"projects/{self.project}/{place}/{name}")} if where else {}),
            "selfLink": url(self.path),
            **self.failure,
        }


def _suffix(clock: Clock) -> str:
    """The form of the real ones: milliseconds, microseconds as hexadecimals, then random ones."""
    now, random = clock.now(), secrets.token_hex(8)
    return f"{int(now * 1000)}-{int(now * 1e6):013x}-{random[:8]}-{random[8:]}"
