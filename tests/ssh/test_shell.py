"""A shell and commands on an instance, as a person or a script has them: a real process of ours."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from .conftest import Guest

PROGRAM = """
import json, sys
from gce_backend.agent.paths import RunPaths
from gce_backend.compute import Compute
from gce_backend.errors import SshError
from gce_backend.ssh_access import SshAccess
from gce_backend.ssh_route import Route
from gce_backend.ssh_shell import run_command, run_in_terminal
from gce_backend.storage import Storage
from gce_backend.submission import Submission

fields = json.loads(sys.argv[1])
submission = Submission(**fields, paths=RunPaths("mlflow-gce", fields["run_id"]))
compute = Compute(submission.project, endpoint=sys.argv[2])
storage, route = Storage("bucket", project="p"), Route.of(emulated=True)
access = SshAccess(submission, compute, storage, route=route)
run = run_in_terminal if sys.argv[3] == "terminal" else run_command
with access.connect() as connection:
    try:
        sys.exit(run(connection, sys.argv[4] or None))
    except SshError as error:
        sys.exit(f"told: {error}")
"""


@pytest.fixture
def up(guest: Guest) -> Guest:
    guest.insert()
    guest.access().connect_within(30, lambda _: None).close()
    return guest


def words(guest: Guest, kind: str, command: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        PROGRAM,
        guest.as_json(),
        guest.emulator.compute_url,
        kind,
        command,
    ]


def run(guest: Guest, command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        words(guest, "plain", command),
        env={**os.environ, **guest.emulator.env},
        input=stdin,
        capture_output=True,
        timeout=90,
        check=False,
    )


def test_a_commands_streams_and_exit_code(up: Guest) -> None:
    done = run(up, "cat; echo trouble >&2; exit 7", os.urandom(1) * 300_000)

    assert (done.returncode, len(done.stdout), done.stderr) == (7, 300_000, b"trouble\n")


def test_a_shell_reads_a_script(up: Guest) -> None:
    done = run(up, "", b"echo $USER\nexit 3\n")

    assert (done.returncode, done.stdout) == (3, b"mlflow\n")


def test_an_instance_that_goes_away_is_told(up: Guest) -> None:
    process = subprocess.Popen(
        words(up, "plain", "echo here; sleep 100"),
        env={**os.environ, **up.emulator.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    up.emulator.erase(up.submission.instance)
    _, error = process.communicate(timeout=60)

    assert process.returncode == 1
    assert b"broke; what ran there may still run" in error
    assert b"Traceback" not in error


class Terminal:
    """Our side of a pseudo-terminal that a process of ours runs in."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.resize(100, 30, tell=False)
        self.process = subprocess.Popen(
            command, env=environ, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.slave = slave
        self.seen = b""

    def resize(self, columns: int, rows: int, *, tell: bool = True) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        if tell:
            os.kill(self.process.pid, signal.SIGWINCH)

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def wait_for(self, text: bytes, seconds: float = 60, *, after: int = 0) -> None:
        """Until ``text`` is to be seen, from the byte ``after`` on."""
        end = time.monotonic() + seconds
        while text not in self.seen[after:]:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self._master, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self._master)


@pytest.fixture
def terminal(up: Guest) -> Iterator[Terminal]:
    environ = {**os.environ, **up.emulator.env, "TERM": "xterm-256color"}
    running = Terminal(words(up, "terminal", ""), environ)
    yield running
    running.close()


def test_a_shell_in_a_terminal_with_its_size_and_ctrl_c(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.slave)
    prompt = b"$ " if os.geteuid() else b"# "
    terminal.wait_for(prompt)
    terminal.type(b"stty size; echo $TERM-ok\r")
    terminal.wait_for(b"30 100\r\n")
    terminal.wait_for(b"xterm-256color-ok\r\n")
    terminal.resize(77, 22)
    terminal.type(b"sleep 0.3; stty size\r")
    terminal.wait_for(b"22 77\r\n")
    # One process says it and sleeps: an interrupt between an echo of the shell's own and the
    # start of its next program, bash loses (seen 2 times in 150 without us).
    terminal.type(b"sh -c 'echo sleeping-$((1+1)); exec sleep 100'\r")
    terminal.wait_for(b"sleeping-2\r\n")
    seen = len(terminal.seen)
    terminal.type(b"\x03")  # ends what runs there, not our process
    # What is typed before the next prompt, an interrupt throws away.
    terminal.wait_for(prompt, after=seen)
    terminal.type(b"exit 5\r")

    assert terminal.process.wait(timeout=60) == 5
    assert termios.tcgetattr(terminal.slave) == before
