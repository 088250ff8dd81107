"""TCP ports that can be listened on, for servers that bind them a while later."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable
from itertools import islice

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


def usable(addresses: Iterable[str], *ports: int) -> int:
    """The first of ``ports`` that can be listened on at one of the ``addresses``; 0: none can.

    Ports below 1024 may need a privilege, and what listens on all of the machine's addresses keeps
    its port from each. Three addresses are tried: of one, another emulator may have the port.
    """
    places = list(islice(addresses, 3))
    return next((port for port in ports if any(_is_free(place, port) for place in places)), 0)


def _is_free(address: str, port: int) -> bool:
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        return False
    return True
