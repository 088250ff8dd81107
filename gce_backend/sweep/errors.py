"""What a sweep raises: an instance's exception as if it had happened here, and our own errors.

Nothing of the former is unpickled: the bucket's word is data. Its frames come back as a traceback
of functions with the same names, files and lines, so that Hydra, pytest and debuggers show where
the task failed, and its causes with them.
"""

from __future__ import annotations

import builtins
import re
import sys
from types import TracebackType
from typing import Any

from hydra.errors import CompactHydraException

_ADVICE = re.compile(r"-P (machine|gce)((?:\.\w+)*)=(\[[^]]*\]|[\w.-]+|…)")


class SweepFailed(CompactHydraException, RuntimeError):  # type: ignore[misc]
    """What ended a sweep or a job, when it was not the task's own exception.

    Of this kind Hydra prints the message alone, and the traceback with HYDRA_FULL_ERROR=1.
    """


def in_hydras_words(text: str, *, own_nodes: bool) -> str:
    """``text`` with its advice as one writes it behind ``program.py -m``, where no ``-P`` is known.

    Args:
        own_nodes: the program's configuration has the nodes ``machine`` and ``gce``.
    """

    def word(found: re.Match[str]) -> str:
        node, path, value = found.groups()
        if own_nodes:
            return f"{node}{path}={value}"
        for key in reversed(path.split(".")[1:]):
            value = f"{{{key}:{value}}}"
        return f"hydra.launcher.{node}={value}"

    return _ADVICE.sub(word, text)


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
