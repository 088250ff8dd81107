"""The inside of an instance: its directory and its processes on the machine we run on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from .. import isolation, leftovers, limits
from .process import Process

# An instance sits in this machine's network: what the machine needs to reach a package index,
# the instance needs too.
_NETWORK_VARIABLES = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)
_NETWORK_PREFIXES = ("PIP_", "UV_")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """Directory and processes of one instance.

    Args:
        isolated: with namespaces of its own, made by :meth:`turn_on`.
        directory: everything the instance has; removed with it.
        mark: ``EMULATOR/INSTANCE``, found in the environment of all its processes.
        environment: variables particular to this instance.
        groups: control groups that all its processes are in, see ``limits.py``.
    """

    def __init__(
        self,
        directory: Path,
        mark: str,
        environment: Mapping[str, str],
        *,
        isolated: bool = False,
        groups: Sequence[Path] = (),
    ) -> None:
        self.directory = directory
        self._mark = mark
        self._own_environment = dict(environment)
        self._sessions: set[int] = set()
        self._children: list[Process] = []
        self._isolated = isolated
        self._groups = groups
        self._holder: Process | None = None
        self._first_pid = 0  # process 1 of the instance, seen from outside

    @property
    def bin(self) -> Path:
        return self.directory / "bin"

    @property
    def home(self) -> Path:
        return self.directory / "home" / "root"

    def home_of(self, user: str) -> Path:
        """A user's home, made when it is asked for. All users are one, named differently."""
        home = self.directory / "home" / Path(user).name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def outside(self, path: Path) -> Path:
        """Where a path that the instance names is, seen from outside."""
        if not self._first_pid or path.is_relative_to(self.directory):
            return path
        for hidden in isolation.HIDDEN:
            if path.is_relative_to(hidden):
                return self.directory / hidden.name / path.relative_to(hidden)
        return path

    @property
    def serial_file(self) -> Path:
        return self.directory / "serial1"

    def make_directories(self) -> None:
        for name in (self.bin, self.home, self.directory / "tmp", self.directory / "state"):
            name.mkdir(parents=True, exist_ok=True)

    async def turn_on(self, name: str, metadata_address: str) -> None:
        """Make the directories, and the namespaces where wanted.

        Raises:
            TimeoutError: the namespaces do not stand within 10 s.
        """
        self.make_directories()
        if not self._isolated:
            return
        ready = self.directory / "ready"
        ready.unlink(missing_ok=True)
        command = isolation.holder(self.directory, name, metadata_address)
        with self.serial_file.open("ab") as serial:
            self._holder = self._adopt(
                Process(
                    limits.joining(self._groups, command),
                    environment=self.environment(),
                    directory=self.directory,
                    output=serial,
                )
            )
        deadline = time.monotonic() + 10
        while not ready.exists():
            if time.monotonic() > deadline or not self._holder.is_alive:
                raise TimeoutError(f"{name}: no namespaces after 10 s, see {self.serial_file}")
            await asyncio.sleep(0.005)
        self._first_pid = isolation.child_of(self._holder.pid) or 0

    def environment(self) -> dict[str, str]:
        """What a process of the instance starts with: nothing of ours but the network's."""
        network = {
            key: value
            for key, value in os.environ.items()
            if key in _NETWORK_VARIABLES or key.startswith(_NETWORK_PREFIXES)
        }
        return {
            **network,
            "PATH": f"{self.bin}:{_SYSTEM_PATH}",
            "HOME": str(self.home),
            "TMPDIR": str(self.directory / "tmp"),
            "STATE_DIRECTORY": str(self.directory / "state"),
            "LANG": "C.UTF-8",
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/bash",
            leftovers.MARK: self._mark,
            **self._own_environment,
        }

    def spawn(
        self,
        arguments: Sequence[str],
        *,
        output: IO[bytes] | int | None = None,
        extra: Mapping[str, str] | None = None,
        directory: Path | None = None,
        piped: bool = False,
        terminal: int | None = None,
    ) -> Process:
        """Start a process of the instance, in root's home if not elsewhere; see Process."""
        where = directory or self.home
        if self._first_pid:
            arguments = isolation.inside(self._first_pid, where, arguments)
        return self._adopt(
            Process(
                limits.joining(self._groups, arguments),
                environment={**self.environment(), **(extra or {})},
                directory=where,
                output=output,
                piped=piped,
                terminal=terminal,
            )
        )

    def _adopt(self, process: Process) -> Process:
        self._children.append(process)
        self._sessions.add(process.pid)
        return process

    def pids(self) -> list[int]:
        """Every living process of the instance."""
        for child in self._children:
            child.reap()
        self._children = [child for child in self._children if child.is_alive]
        pids = leftovers.marked(self._mark, frozenset(self._sessions))
        # A session nobody is in any more is forgotten: its number may be given out again.
        self._sessions &= {leftovers.session_of(pid) for pid in pids}
        return pids

    def terminate(self) -> None:
        """SIGTERM to all, as an operating system going down sends it."""
        for pid in self._guest_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _guest_pids(self) -> list[int]:
        """Those of the guest itself: without process 1 and what leads into its namespaces."""
        pids = self.pids()
        if not self._first_pid:
            return pids
        ours = {self._first_pid, *(child.pid for child in self._children)}
        return [pid for pid in pids if pid not in ours]

    async def gone(self, seconds: float) -> bool:
        """Whether all processes ended by themselves within ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._guest_pids():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def kill(self, seconds: float = 10.0) -> None:
        """SIGKILL to all, until none is left.

        Raises:
            TimeoutError: some are alive after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        if self._first_pid and self._holder is not None and self._holder.is_alive:
            await self._kill_namespaces(self._holder, seconds)
            self._holder, self._first_pid = None, 0
            if not self._children:
                return
        self._holder, self._first_pid = None, 0
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._mark}: {pids} are alive {seconds} s after SIGKILL")
            await asyncio.sleep(0.005)

    async def _kill_namespaces(self, holder: Process, seconds: float) -> None:
        """With process 1 the kernel ends all that is inside; its parent ends after the last.

        So nobody has to be looked for, which takes its time among the processes of many instances.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first_pid, signal.SIGKILL)
        for child in self._children:
            if child is not holder:  # what leads inside, perhaps still on its way
                child.kill()
        await asyncio.wait_for(asyncio.gather(*(child.wait() for child in self._children)), seconds)
        self._children = [child for child in self._children if child.is_alive]
        self._sessions = {child.pid for child in self._children}

    async def remove(self) -> None:
        """Remove the directory, and whatever of it a dying process made once more."""
        for _ in range(50):
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)
            if not self.directory.exists():
                return
            await asyncio.sleep(0.05)
        raise OSError(f"{self.directory} could not be removed")

    def log(self, line: str) -> None:
        """A line of the guest's own on serial port 1."""
        with contextlib.suppress(FileNotFoundError), self.serial_file.open("ab") as file:
            file.write(line.encode() + b"\n")
