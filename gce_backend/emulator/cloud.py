"""The emulated project: its settings and everything that exists in it.

Used from one event loop only; what tests ask for from other threads goes through ``embedded.py``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .calls import Call, Service
from .clock import Clock
from .doors import Handlers, addresses
from .errors import ApiError
from .faults import Fault, FaultKind, Faults, operation_error
from .limits import Limits
from .names import fingerprint
from .operations import Operation
from .os_login import OsLogin
from .tokens import Tokens

if TYPE_CHECKING:
    from aiohttp import web

    from .life import Life

log = logging.getLogger(__name__)

PROJECT_NUMBER = "123456789012"


@dataclass(frozen=True)
class Settings:
    """What an emulator is started with.

    Attributes:
        root: directory of everything it writes.
        mark: its processes' mark, see ``leftovers.py``.
        boot_seconds: from the insert to the startup script. A real Ubuntu takes about 30.
        ssh_seconds: from then until SSH answers.
        shutdown_seconds: what processes get between SIGTERM and SIGKILL. Really 120, and 30 for
            spot.
        legacy_images: deprecated families (``pytorch-latest-cpu``) resolve.
        isolated: instances get namespaces of their own; needs root, see ``isolation.py``.
    """

    root: Path
    mark: str
    project: str = "emulator-project"
    boot_seconds: float = 0.2
    ssh_seconds: float = 0.0
    shutdown_seconds: float = 2.0
    legacy_images: bool = False
    isolated: bool = False


@dataclass
class ProjectMetadata:
    """Metadata common to all instances."""

    items: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.items)

    def resource(self) -> dict[str, Any]:
        items = [{"key": key, "value": value} for key, value in self.items.items()]
        return {
            "kind": "compute#metadata",
            "fingerprint": self.fingerprint,
            **({"items": items} if items else {}),
        }


class Cloud:
    """All that exists."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self.settings = settings
        self.limits = limits
        self.clock = Clock()
        self.tokens = Tokens(self.clock)
        self.faults = Faults()
        self.os_login = OsLogin(self.clock)
        self.project_metadata = ProjectMetadata()
        self.lives: dict[tuple[str, str], Life] = {}  # (zone, name)
        self.by_address: dict[str, Life] = {}
        self.disks: dict[tuple[str, str], dict[str, Any]] = {}  # (zone, name)
        self.operations: OrderedDict[str, Operation] = OrderedDict()
        # (method and path, requestId) -> what began the operation
        self.requests: dict[tuple[str, str], asyncio.Task[Operation]] = {}
        self.calls: list[Call] = []
        self.addresses = addresses()
        self.handlers: Handlers | None = None  # set once the services listen
        self._tasks: set[asyncio.Task[None]] = set()

    # -- calls ----------------------------------------------------------------------------------

    def begin(self, call: Call) -> int:
        """Record a call that came in; gives its place for :meth:`end`."""
        self.calls.append(call)
        return len(self.calls) - 1

    def begin_http(
        self, service: Service, name: str, request: web.BaseRequest, caller: Life | None
    ) -> int:
        """The same for a request without a body worth keeping."""
        return self.begin(
            Call(
                at=self.clock.now(),
                service=service,
                method=request.method,
                path=request.path,
                query=dict(request.query),
                body=None,
                status=None,
                name=name,
                caller=caller.instance.name if caller else "",
            )
        )

    def end(self, place: int, **changes: Any) -> None:
        self.calls[place] = dataclasses.replace(self.calls[place], **changes)

    # -- faults ---------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        """From now on; a cut network also breaks the connections there are."""
        self.faults.inject(fault)
        for life in self.lives.values():
            if self.faults.network_is_cut(*life.instance.names):
                life.disconnect()

    # -- operations -----------------------------------------------------------------------------

    def new_operation(
        self,
        scope: str,
        kind: str,
        target: str,
        target_id: str,
        *,
        user: str,
        request_id: str | None = None,
    ) -> Operation:
        operation = Operation(
            self.clock,
            self.settings.project,
            scope,
            kind,
            target,
            target_id,
            user=user,
            request_id=request_id,
        )
        self.operations[operation.name] = operation
        return operation

    def carry_out(
        self,
        operation: Operation,
        method: str,
        names: tuple[str, ...],
        effect: Callable[[], Awaitable[None]],
        *,
        undo: Callable[[], Awaitable[None]] | None = None,
        zone: str = "",
    ) -> None:
        """Let ``operation`` take its course in the background, spoiled by a fault if one is set.

        Args:
            effect: an ApiError that it raises becomes the operation's own.
            undo: what a failure takes back (an insert that finds no capacity leaves nothing).
            zone: where it takes effect, if that is not the operation's scope.
        """
        zone = zone or operation.scope.rpartition("/")[2]
        self.spawn(self._carry_out(operation, method, names, effect, undo, zone))

    async def _carry_out(
        self,
        operation: Operation,
        method: str,
        names: tuple[str, ...],
        effect: Callable[[], Awaitable[None]],
        undo: Callable[[], Awaitable[None]] | None,
        zone: str,
    ) -> None:
        fault = self.faults.take_operation(method, *names)
        operation.start()
        if fault is not None and fault.kind is FaultKind.OPERATION_STUCK:
            return
        if fault is not None and fault.kind is FaultKind.OPERATION_SLOW:
            await self.clock.sleep(fault.seconds)
        elif fault is not None:
            await self.clock.sleep(self.settings.boot_seconds / 4)
            if undo is not None:
                await undo()
            operation.finish(operation_error(fault, zone=zone, resource=operation.target))
            return
        try:
            await effect()
        except InstanceVanished:
            operation.finish(_vanished(operation.target))
        except ApiError as error:
            operation.finish(error.in_operation())
        except Exception:
            log.exception("operation %s on %s failed", operation.name, operation.target)
            operation.finish(_internal_error())
        else:
            operation.finish()

    # -- tasks ----------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in the background until done or until the emulator stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)

    async def close(self) -> None:
        """End every instance at once, without notice, and everything in the background."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(life.erase() for life in list(self.lives.values())))


class InstanceVanished(Exception):
    """An operation's instance was deleted before the operation was done."""


def _vanished(target: str) -> dict[str, Any]:
    message = f"The resource '{target}' was not found"
    return {
        "error": {"errors": [{"code": "RESOURCE_NOT_FOUND", "message": message}]},
        "httpErrorStatusCode": 404,
        "httpErrorMessage": "NOT FOUND",
    }


def _internal_error() -> dict[str, Any]:
    return {
        "error": {"errors": [{"code": "INTERNAL_ERROR", "message": "Internal error."}]},
        "httpErrorStatusCode": 500,
        "httpErrorMessage": "INTERNAL SERVER ERROR",
    }
