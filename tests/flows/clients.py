"""Clients as processes of their own that start in no time: forked where everything is imported.

`multiprocessing`'s fork server imports MLflow, Hydra and the cloud's libraries once; each client is
a fork of it that runs a command line, as `mlflow` and `mlflow-gce` would, and can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_IMPORTED = [
    "mlflow.cli",
    "mlflow.projects",
    "mlflow.store.tracking.sqlalchemy_store",
    "hydra",
    "google.cloud.compute_v1",
    "google.cloud.storage",
    "gce_backend.backend",
    "gce_backend.commands.attach",
    "gce_backend.commands.stop",
    "gce_backend.runner",
    "gce_backend.submit",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_IMPORTED)


class Client:
    """A command line at work; its output goes to a file."""

    def __init__(self, command: list[str], *, environ: dict[str, str], directory: Path) -> None:
        self._output = directory / f"client-{time.monotonic_ns()}.txt"
        self.process: ForkServerProcess = _context.Process(
            target=_run, args=(command, environ, str(directory), str(self._output))
        )
        self.process.start()

    @property
    def text(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Until it has printed ``words``; fails when it ends without, or after ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            ended = not self.is_alive  # asked first: what it printed last is read after its end
            if words in self.text:
                return
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"no {words!r} in:\n{self.text}")
            time.sleep(0.05)

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self, seconds: float = 120) -> int:
        """The exit code; fails when it has not ended after ``seconds``."""
        self.process.join(seconds)
        assert not self.is_alive, f"still at work after {seconds} s:\n{self.text}"
        assert self.process.exitcode is not None
        return self.process.exitcode

    def kill(self) -> None:
        if self.is_alive:
            self.process.kill()
            self.process.join()


def _run(command: list[str], environ: dict[str, str], directory: str, output: str) -> None:
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None  # what was imported before the fork may have asked for it already
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if command[0] == "mlflow":
        from mlflow.cli import cli as main
    else:
        from gce_backend.cli import main
    main(command[1:])
