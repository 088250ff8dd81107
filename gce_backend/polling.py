"""Waiting, always with a deadline: the only loops here that sleep."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class DeadlinePassed(TimeoutError):
    """``wait_until`` ran out of time before its check gave anything."""


def wait_until(
    check: Callable[[], T | None],
    *,
    seconds: float,
    what: str,
    first: float = 0.1,
    most: float = 2.0,
) -> T:
    """Call ``check`` until it returns something other than None, and return that.

    Args:
        seconds: how long to try at most.
        what: what is waited for, for the error.
        first: seconds before the second call; grows by half each time up to ``most``.

    Raises:
        DeadlinePassed: nothing came in time.
    """
    end = time.monotonic() + seconds
    pause = first
    while True:
        if (result := check()) is not None:
            return result
        left = end - time.monotonic()
        if left <= 0:
            raise DeadlinePassed(f"waited {seconds:.0f} s for {what}")
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, most)


def retry(
    call: Callable[[], T],
    *,
    is_transient: Callable[[Exception], bool],
    seconds: float,
    first: float = 0.5,
    most: float = 20.0,
) -> T:
    """Return ``call()``, called again after each transient error until ``seconds`` are over.

    Raises:
        Exception: what the last call raised.
    """
    end = time.monotonic() + seconds
    pause = first
    while True:
        try:
            return call()
        except Exception as error:
            # Jitter: a sweep's jobs must not all come back in the same instant.
            wait = pause * random.uniform(0.5, 1.0)
            if not is_transient(error) or time.monotonic() + wait > end:
                raise
            time.sleep(wait)
            pause = min(pause * 2, most)
