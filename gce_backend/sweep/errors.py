"""An exception of an instance, raised here as if it had happened here.

Nothing of it is unpickled: the bucket's word is data. Its frames come back as a traceback of
functions with the same names, files and lines, so that Hydra, pytest and debuggers show where the
task failed, and its causes with them.
"""

from __future__ import annotations

import builtins
import sys
from types import TracebackType
from typing import Any


def rebuilt(told: dict[str, Any]) -> BaseException:
    """The exception that ``job.run.describe`` described, with traceback and causes.

    A class that this process does not know, or that cannot be made from its arguments, becomes
    RuntimeError with the class's name in its message.
    """
    error = _instance(told)
    error.__cause__ = rebuilt(told["cause"]) if told.get("cause") else None
    error.__context__ = rebuilt(told["context"]) if told.get("context") else error.__cause__
    return error.with_traceback(_traceback(told["frames"]))


def _instance(told: dict[str, Any]) -> BaseException:
    module = sys.modules.get(told["module"])
    if told["module"] == "builtins":
        module = builtins
    elif told["module"] in ("__mp_main__", "__main__"):
        module = sys.modules["__main__"]
    kind = getattr(module, told["type"], None)
    if isinstance(kind, type) and issubclass(kind, Exception) and told["exact"]:
        try:
            error = kind(*told["args"])
        except Exception:  # a constructor of its own
            error = None
        if error is not None and str(error) == told["message"]:
            return error
    return RuntimeError(f"{told['type']}: {told['message']}")


def _traceback(frames: list[list[Any]]) -> TracebackType | None:
    """A chain of traceback objects with these (file, line, function, source line)."""
    chain: TracebackType | None = None
    for file, line, name, _ in reversed(frames):
        made = _frame(str(file), int(line), str(name))
        if made is not None:
            chain = TracebackType(chain, made.tb_frame, -1, int(line))
    return chain


def _frame(file: str, line: int, name: str) -> TracebackType | None:
    code = compile("raise ValueError", file, "exec").replace(
        co_name=name, co_qualname=name, co_firstlineno=line
    )
    try:
        exec(code, {"__name__": name, "__file__": file})
    except ValueError as error:
        return error.__traceback__ and error.__traceback__.tb_next
    return None
