"""Runs commands on pseudo-terminals: one process that has imported everything, forked for each.

Reads a request a line, as JSON, and answers with one. A fork of a process without threads is a
fresh process without the seconds that importing MLflow takes.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
import traceback
from typing import Any

_COMMAND_SECONDS = 60


class Terminal:
    """The side of the tests. Use as a context manager."""

    def __enter__(self) -> Terminal:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(timeout=_COMMAND_SECONDS)

    def run(self, words: list[str], **request: Any) -> str:
        """Everything the command wrote, and its exit code when that is not 0.

        Args:
            environ: the whole environment.
            directory: where it runs.
            columns: of the terminal; None: into a pipe.
            now: unix seconds that the command takes for the present.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"words": words, **request}) + "\n")
        self._process.stdin.flush()
        return str(json.loads(self._process.stdout.readline()))


def _serve() -> None:
    import rich.table  # noqa: F401
    from google.cloud import storage  # noqa: F401
    from mlflow.tracking import MlflowClient  # noqa: F401

    import gce_backend.catch_up
    import gce_backend.doctor
    import gce_backend.reaper  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(request)), flush=True)


def _answer(request: dict[str, Any]) -> str:
    columns = request["columns"]
    if columns is None:
        reading, writing = os.pipe()
        child = os.fork()
    else:
        child, reading = pty.fork()
    if not child:
        if columns is None:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
        else:  # by itself, before it looks
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        _become(request)
    if columns is None:
        os.close(writing)
    output = bytearray()
    while block := _read(reading):
        output += block
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = output.decode("utf-8", "replace").replace("\r\n", "\n")
    return text + (f"[exit code {code}]\n" if code else "")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the last process on a pseudo-terminal has ended
        return b""


def _become(request: dict[str, Any]) -> None:
    code = 1
    try:
        os.environ.clear()
        os.environ.update(request["environ"])
        os.chdir(request["directory"])
        time.tzset()
        difference = request["now"] - time.time()
        real = time.time
        time.time = lambda: real() + difference
        from gce_backend.cli import main

        main(request["words"], prog_name="mlflow-gce")
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
