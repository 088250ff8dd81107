"""Carries bytes between an SSH session and the pipes or the terminal of its process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from typing import IO, Any

import asyncssh

from .process import Process

_PIECE = 64 * 1024
_DRAIN_SECONDS = 1.0  # for output that a background job still holds open after the exit


async def connect(session: Any, process: Process, terminal: int | None = None) -> int:
    """Until the process ends and its output is sent; gives its exit code."""
    if terminal is not None:
        writing: IO[bytes] = os.fdopen(os.dup(terminal), "wb", buffering=0)
        outputs: list[tuple[IO[bytes], Any]] = [
            (os.fdopen(terminal, "rb", buffering=0), session.stdout)
        ]
    else:
        assert process.stdin and process.stdout and process.stderr
        writing = process.stdin
        outputs = [(process.stdout, session.stdout), (process.stderr, session.stderr)]
    incoming = asyncio.ensure_future(_inwards(session.stdin, writing, terminal))
    outgoing = [asyncio.ensure_future(_outwards(source, sink)) for source, sink in outputs]
    try:
        status = await process.wait()
        await asyncio.wait(outgoing, timeout=_DRAIN_SECONDS)
        return status
    finally:
        for task in (incoming, *outgoing):
            task.cancel()
        await asyncio.gather(incoming, *outgoing, return_exceptions=True)


def resize(terminal: int, size: tuple[int, ...]) -> None:
    """``size``: columns and rows, then pixels."""
    columns, rows, *_ = size
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def _inwards(source: Any, sink: IO[bytes], terminal: int | None) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sink)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while True:
            try:
                data = await source.read(_PIECE)
            except asyncssh.TerminalSizeChanged as change:
                if terminal is not None:
                    resize(terminal, change.term_size)
                continue
            except (asyncssh.BreakReceived, asyncssh.SignalReceived):
                continue
            if not data:
                break
            writer.write(data)
            await writer.drain()
        if terminal is None:
            writer.write_eof()
            await asyncio.Event().wait()  # the transport closes itself once all is written
    except (ConnectionError, asyncssh.Error):
        return  # the process no longer reads, or the client is gone
    finally:
        writer.close()


async def _outwards(source: IO[bytes], sink: Any) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), source
    )
    try:
        # A terminal whose other end is closed answers EIO, not the end of the file.
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await reader.read(_PIECE):
                sink.write(data)
                await sink.drain()
    finally:
        transport.close()
