"""A person's shell on an instance, or one command there, as ``ssh`` gives them.

POSIX only: a terminal is put into raw mode, and its size travels with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Any

from gce_backend.errors import SshUnavailable
from gce_backend.ssh import Connection

_PIECE = 65536
#: As ssh: the exit code where the command left none, since the connection broke or a signal came.
NO_EXIT_CODE = 255


def run_command(connection: Connection, command: str | None) -> int:
    """Run ``command`` (None: a login shell) with our standard streams; its exit code.

    Raises:
        SshUnavailable: the connection broke before the command had ended.
    """
    channel = connection.start(command) if command else connection.session()
    if not command:
        channel.invoke_shell()
    threading.Thread(target=_send_input, args=(channel,), daemon=True).start()
    errors = threading.Thread(
        target=_copy, args=(channel.recv_stderr, sys.stderr.fileno()), daemon=True
    )
    errors.start()
    _copy(channel.recv, sys.stdout.fileno())
    errors.join()
    return _exit_code(connection, channel)


def run_in_terminal(connection: Connection, command: str | None) -> int:
    """Run ``command`` (None: a login shell) in a terminal of the instance, shown in ours.

    Raises:
        SshUnavailable: the connection broke before it had ended.
    """
    channel = connection.session()
    columns, rows = os.get_terminal_size(sys.stdin.fileno())
    channel.get_pty(term=os.environ.get("TERM", "xterm"), width=columns, height=rows)
    if command:
        channel.exec_command(command)
    else:
        channel.invoke_shell()
    with _raw_terminal(), _size_changes() as resized:
        _converse(channel, resized)
    return _exit_code(connection, channel)


def _converse(channel: Any, resized: int) -> None:
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    sources: list[Any] = [channel, keyboard, resized]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if resized in ready:
            os.read(resized, _PIECE)
            columns, rows = os.get_terminal_size(keyboard)
            channel.resize_pty(width=columns, height=rows)
        if channel in ready:
            data = channel.recv(_PIECE)
            if not data:
                return
            _write(screen, data)
        if keyboard in ready:
            data = os.read(keyboard, _PIECE)
            if data:
                with contextlib.suppress(OSError):  # it has ended; its last output comes first
                    channel.sendall(data)
            else:
                sources.remove(keyboard)
                channel.shutdown_write()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the instance, Ctrl-C too; afterwards the terminal is as it was."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _size_changes() -> Iterator[int]:
    """A descriptor that can be read whenever the window has another size."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGWINCH, before)
        os.close(reading)
        os.close(writing)


def _send_input(channel: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # the command has ended, or we have no input
        while data := os.read(sys.stdin.fileno(), _PIECE):
            channel.sendall(data)
        channel.shutdown_write()


def _copy(receive: Any, sink: int) -> None:
    while data := receive(_PIECE):
        _write(sink, data)


def _write(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]


def _exit_code(connection: Connection, channel: Any) -> int:
    code = int(channel.recv_exit_status())
    if code < 0 and not connection.is_open:
        raise SshUnavailable(
            f"the SSH connection to {connection.instance!r} broke; what ran there may still run"
        )
    return code if code >= 0 else NO_EXIT_CODE
