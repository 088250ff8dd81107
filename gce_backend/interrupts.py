"""Signals of the person at the keyboard, turned into two wishes: cancel, or detach.

Ctrl-C cancels the run, a second one detaches; SIGTERM and SIGHUP (a closed terminal, a sleeping
Codespace) detach at once. Until the instance is asked for there is nothing to detach from, so a
signal then simply ends the command. A signal that was ignored when the command started (``nohup``,
a job in the background) stays ignored.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


class _Leave(BaseException):
    """Raised by the handler to leave a call that blocks; no library may take it for an error."""


class Interrupts:
    """Collects signals while its block runs, if it runs in the main thread and is ``active``."""

    def __init__(self, *, active: bool = True) -> None:
        self._active = active and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {}
        self._received: list[int] = []
        self._deferred = False
        self._may_leave = False
        self._pipe: tuple[int, int] | None = None
        self._previous_wakeup = -1

    def __enter__(self) -> Interrupts:
        if not self._active:
            return self
        # The interpreter itself writes to the pipe: nothing a handler does can wait for a lock
        # that the interrupted code holds.
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._previous_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in (signal.SIGINT, *_DETACHING):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._pipe:
            signal.set_wakeup_fd(self._previous_wakeup)
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    def defer(self, deferred: bool = True) -> bool:
        """As ``deferred``, from now on (or no longer). Returns how it was before."""
        before, self._deferred = self._deferred, deferred
        return before

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While an instance may exist, a signal only leaves a wish; the code looks at it."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @contextmanager
    def leaving(self, told: Callable[[], str]) -> Iterator[None]:
        """While inside, a wish to leave ends whatever the main thread waits for, at once.

        Args:
            told: what is true of the run when we leave it.

        Raises:
            Detached: with ``told()`` and the exit code to leave with.
        """
        try:
            self._may_leave = True
            if self.detach_exit_code is not None:
                raise _Leave
            yield
        except _Leave:
            code = self.detach_exit_code
            raise Detached(told(), exit_code=1 if code is None else code) from None
        finally:
            self._may_leave = False

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
        if self._pipe is None:
            time.sleep(seconds)
            return
        select.select([self._pipe[0]], [], [], seconds)
        with suppress(BlockingIOError):
            os.read(self._pipe[0], 512)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)
        if not self._deferred:
            name = signal.Signals(number).name
            raise Interrupted(f"{name}: no instance was requested", exit_code=128 + number)
        if self._may_leave and self.detach_exit_code is not None:
            self._may_leave = False  # once: what is unwound now must not be broken off again
            raise _Leave
