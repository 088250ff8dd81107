"""What an answer fault does to a call: before it takes effect, and after."""

from __future__ import annotations

from .clock import Clock
from .errors import ReplyLost
from .faults import Fault, FaultKind, answer_error


async def before(fault: Fault | None, clock: Clock) -> None:
    """Raises ApiError or ReplyLost where the call is to have no effect; a slow one waits here."""
    if fault is None:
        return
    if fault.kind is FaultKind.SLOW:
        await clock.sleep(fault.seconds)
    elif fault.kind is FaultKind.REPLY_LOST_BEFORE:
        raise ReplyLost
    elif (error := answer_error(fault)) is not None:
        raise error


def after(fault: Fault | None) -> None:
    """Raises ReplyLost where only the answer is to be lost."""
    if fault is not None and fault.kind is FaultKind.REPLY_LOST_AFTER:
        raise ReplyLost
