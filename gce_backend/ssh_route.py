"""The way to an instance's SSH port: its external address, its internal one, or IAP."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gce_backend.errors import SshUnavailable

_CONNECT_SECONDS = 10.0
#: A peer that acknowledges nothing for so long is gone; the kernel alone would wait 15 minutes.
_SILENCE_SECONDS = 30


@dataclass(frozen=True)
class Route:
    """How connections are made, from the environment.

    Args:
        port: of the instance's SSH server; an emulator without root cannot have 22.
        iap_url: where the IAP relay is, None for Google's.
    """

    port: int = 22
    iap_url: str | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ, *, emulated: bool) -> Route:
        """``GCE_EMULATOR_SSH_PORT`` counts only where an emulator does the rest as well."""
        port = environ.get("GCE_EMULATOR_SSH_PORT") if emulated else None
        return cls(int(port or 22), environ.get("MLFLOW_GCE_IAP_URL") or None)

    def open(self, via: str, project: str, zone: str, instance: dict[str, Any]) -> socket.socket:
        """A connected socket to the SSH port of ``instance``, the API's resource.

        Raises:
            SshUnavailable: there is no such way, or nothing answers on it.
            PermissionDenied: IAP does not let us through.
        """
        if via == "iap":
            from gce_backend.iap import open_tunnel

            return open_tunnel(project, zone, instance["name"], self.port, url=self.iap_url)
        return _connect(instance["name"], address_of(instance, via), self.port, via)


def address_of(instance: dict[str, Any], via: str) -> str:
    """The address of the first network interface.

    Raises:
        SshUnavailable: it has none of that kind.
    """
    interface = (instance.get("networkInterfaces") or [{}])[0]
    access = (interface.get("accessConfigs") or [{}])[0]
    address = interface.get("networkIP") if via == "internal" else access.get("natIP")
    if not address:
        raise SshUnavailable(
            f"instance {instance['name']!r} is {instance.get('status')} and has no {via} address; "
            "another way is -P gce.ssh.via=iap (or internal, from inside its network)"
        )
    return str(address)


def _connect(name: str, address: str, port: int, via: str) -> socket.socket:
    try:
        sock = socket.create_connection((address, port), timeout=_CONNECT_SECONDS)
    except OSError as error:
        raise SshUnavailable(
            f"instance {name!r} does not answer at its {via} address {address}:{port} "
            f"({error.strerror or error}). It needs a firewall rule that lets you reach tcp:{port}"
        ) from error
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_SECONDS * 1000)
    return sock
