"""Signals of the person at the keyboard, turned into two wishes: cancel, or detach.

Ctrl-C cancels the run, a second one detaches; SIGTERM and SIGHUP (a closed terminal, a sleeping
Codespace) detach at once. Until the instance is asked for there is nothing to detach from, so a
signal then simply ends the command.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gce_backend.errors import GceBackendError

_DETACHING = (signal.SIGTERM, signal.SIGHUP)


class Detached(GceBackendError):
    """The client leaves; the run goes on. ``exit_code``: 128 plus the signal, as shells have it."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(GceBackendError):
    """A signal ended the command before an instance was asked for."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupts:
    """Collects signals while its block runs, if it runs in the main thread and is ``active``."""

    def __init__(self, *, active: bool = True) -> None:
        self._active = active and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {}
        self._received: list[int] = []
        self._deferred = False
        self._wake = threading.Event()

    def __enter__(self) -> Interrupts:
        if self._active:
            for number in (signal.SIGINT, *_DETACHING):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self, deferred: bool = True) -> None:
        """As ``deferred``, from now on (or no longer)."""
        self._deferred = deferred

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While an instance may exist, a signal only leaves a wish; the code looks at it."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @property
    def wants_cancel(self) -> bool:
        return signal.SIGINT in self._received

    @property
    def detach_exit_code(self) -> int | None:
        """The exit code to leave with, or None to stay."""
        for number in self._received:
            if number in _DETACHING:
                return 128 + number
        return 128 + signal.SIGINT if self._received.count(signal.SIGINT) > 1 else None

    def sleep(self, seconds: float) -> None:
        """Sleep, but wake at once when a signal comes."""
        self._wake.wait(seconds)
        self._wake.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)
        self._wake.set()
        if not self._deferred:
            name = signal.Signals(number).name
            raise Interrupted(f"{name}: no instance was requested", exit_code=128 + number)
