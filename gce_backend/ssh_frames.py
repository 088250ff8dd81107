"""Programs that run on an instance by ``python3 -c``, and the frames in which they answer.

A frame is a 32-bit length and as many bytes. An empty one says "still here": a connection that
brings none for a while is dead, whatever TCP believes. The programs end when their input does,
that is with the connection. Instances have Python 3.10 or newer; the standard library has to do.
"""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gce_backend.errors import SshUnavailable

if TYPE_CHECKING:
    from gce_backend.ssh import Connection

ALIVE_SECONDS = 5.0
_SILENCE_SECONDS = 20.0
_MOST_BYTES = 1 << 20

#: Where the agent keeps its files (``gce_backend/agent/state.py``), in the instance's own terms.
STATE_DIRECTORY = '"${STATE_DIRECTORY:-/var/lib}"/mlflow-gce'

#: Sends a file from an offset on, and what it gains, as long as anybody listens.
FOLLOW = """
import os, select, struct, sys, time
path, at, alive = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
file, spoke = None, 0.0
def send(data):
    frame = struct.pack(">I", len(data)) + data
    while frame:
        frame = frame[os.write(1, frame):]
while True:
    if file is None and os.path.exists(path):
        file = os.open(path, os.O_RDONLY)
    data = b"" if file is None else os.pread(file, 65536, at)
    if data or time.monotonic() - spoke > alive:
        send(data)
        at, spoke = at + len(data), time.monotonic()
    if select.select([0], [], [], 0 if data else 0.05)[0] and not os.read(0, 1):
        break
"""


#: Tells from which number on the agent cut its log into pieces (``agent/segments.py``).
CURSOR = """
import json, os, struct, sys
if os.path.exists(sys.argv[1]):
    with open(sys.argv[1]) as file:
        data = str(json.load(file)["first"]).encode()
    os.write(1, struct.pack(">I", len(data)) + data)
"""


def command(program: str, *words: str, as_root: bool = False) -> str:
    """A shell command that runs ``program``; ``words`` are the shell's, quoted by the caller.

    Args:
        as_root: by sudo, where the login is not root.
    """
    start = f"exec $sudo python3 -I -c {shlex.quote(program)} {' '.join(words)}"
    sudo = '[ "$(id -u)" = 0 ] || sudo="sudo -n"; ' if as_root else ""
    return f"sudo=; {sudo}{start}"


def first_piece(connection: Connection) -> int:
    """The number of the first piece that the instance made of its log; 0: none yet.

    Raises:
        SshUnavailable: the connection broke.
    """
    channel = connection.start(command(CURSOR, f"{STATE_DIRECTORY}/run.log.pieces", as_root=True))
    return sum(int(frame) for frame in frames(channel, connection.instance))


def frames(channel: Any, instance: str) -> Iterator[bytes]:
    """The frames that a program sends, the empty ones too, until it ends.

    Raises:
        SshUnavailable: the connection broke, or brought nothing for 20 s.
    """
    channel.settimeout(_SILENCE_SECONDS)
    while (header := _exactly(channel, 4, instance)) is not None:
        (length,) = struct.unpack(">I", header)
        if length > _MOST_BYTES:
            # A login shell that prints (a banner in ~/.profile) would come before our frames.
            raise SshUnavailable(f"instance {instance!r} sends something that is no frame")
        data = _exactly(channel, length, instance) if length else b""
        if data is None:
            raise SshUnavailable(f"the SSH connection to {instance!r} broke off")
        yield data


def _exactly(channel: Any, count: int, instance: str) -> bytes | None:
    """``count`` bytes, or None at the end."""
    data = bytearray()
    while len(data) < count:
        try:
            piece = channel.recv(count - len(data))
        except OSError as error:  # a timeout is one
            raise SshUnavailable(
                f"the SSH connection to {instance!r} brought nothing for {_SILENCE_SECONDS:.0f} s"
            ) from error
        if not piece:
            if data:
                raise SshUnavailable(f"the SSH connection to {instance!r} broke off")
            return None
        data += piece
    return bytes(data)
