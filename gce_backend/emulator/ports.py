"""A TCP port for a server that is told its port and binds it a while later."""

from __future__ import annotations

import random
import socket

# Below those that a kernel gives to outgoing connections (Linux from 32768, macOS from 49152): one
# of them may be a connection's own end by the time the server binds it.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing uses, and that no outgoing connection will.

    Raises:
        OSError: none is free.
    """
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port of 127.0.0.1 from {_PORTS[0]} to {_PORTS[-1]} is free")
