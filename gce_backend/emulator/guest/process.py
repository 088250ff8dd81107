"""A child process that an event loop in any thread can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


class Process:
    """A process in a session of its own.

    Its streams: nothing and ``output``; with ``piped``, pipes; with ``terminal``, that one.
    Waiting goes through a pidfd, for asyncio's own children want the main thread on Python 3.11.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        output: IO[bytes] | int | None = None,
        piped: bool = False,
        terminal: int | None = None,
    ) -> None:
        streams: dict[str, IO[bytes] | int | None] = {
            "stdin": subprocess.DEVNULL,
            "stdout": output,
            "stderr": subprocess.STDOUT if output is not None else None,
        }
        if piped:
            streams = dict.fromkeys(streams, subprocess.PIPE)
        elif terminal is not None:
            streams = dict.fromkeys(streams, terminal)
        self._popen = subprocess.Popen(
            list(arguments),
            env=dict(environment),
            cwd=directory,
            stdin=streams["stdin"],
            stdout=streams["stdout"],
            stderr=streams["stderr"],
            start_new_session=True,
            bufsize=0,
        )
        self.pid = self._popen.pid
        # With ``piped``: our ends of the pipes.
        self.stdin, self.stdout = self._popen.stdin, self._popen.stdout
        self.stderr = self._popen.stderr

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    async def wait(self) -> int:
        """Exit code; negative: the signal that ended it."""
        if self._popen.poll() is None:
            descriptor = os.pidfd_open(self.pid)
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[None] = loop.create_future()
            loop.add_reader(descriptor, _resolve, ended)
            try:
                await ended
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        return self._popen.wait()

    def reap(self) -> None:
        """Collect the exit status if there is one, so that no zombie stays."""
        self._popen.poll()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGKILL)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
