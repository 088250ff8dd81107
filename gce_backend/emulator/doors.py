"""An instance's network: one loopback address, and the servers that listen on it.

Compute, storage and metadata are reached by an instance at its own address. So the emulator knows
which instance a request came from, also where it carries no token, and can cut one off.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web

from .ports import usable


def addresses() -> Iterator[str]:
    """Addresses of 127.1.0.0/16, from a place of this emulator's own; then the common one."""
    first = 256 * secrets.randbelow(255)
    for number in range(65024):
        third, fourth = divmod((first + number) % 65024, 254)
        yield f"127.1.{third}.{fourth + 1}"


@dataclass
class Doors:
    """The listening servers of one instance."""

    address: str
    metadata_port: int
    servers: list[asyncio.Server]

    @property
    def metadata_host(self) -> str:
        """For ``GCE_METADATA_HOST``: the port only where it is not 80."""
        return self.address if self.metadata_port == 80 else f"{self.address}:{self.metadata_port}"

    def close(self) -> None:
        for server in self.servers:
            server.close()


@dataclass(frozen=True)
class Handlers:
    """The protocol factories behind the doors, and their ports; ``metadata_port`` 0: any.

    ``ssh_port`` is kept free for the guest, which listens on it once it has booted.
    """

    metadata: web.Server
    compute: web.Server
    storage: web.Server
    metadata_port: int
    compute_port: int
    storage_port: int
    ssh_port: int

    def served(self) -> list[tuple[web.Server, int]]:
        """Each with its port; the metadata server first."""
        return [
            (self.metadata, self.metadata_port),
            (self.compute, self.compute_port),
            (self.storage, self.storage_port),
        ]


async def open_doors(candidates: Iterator[str], handlers: Handlers) -> Doors:
    """Listen on the first of ``candidates`` that is free.

    Raises:
        OSError: none of 1000 was.
    """
    loop = asyncio.get_running_loop()
    for _, address in zip(range(1000), candidates, strict=False):
        if not usable([address], handlers.ssh_port):
            continue
        servers: list[asyncio.Server] = []
        try:
            for handler, port in handlers.served():
                servers.append(await loop.create_server(handler, address, port))
        except OSError as error:
            for server in servers:
                server.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return Doors(address, servers[0].sockets[0].getsockname()[1], servers)
    raise OSError(errno.EADDRNOTAVAIL, "no free address in 127.1.0.0/16")
