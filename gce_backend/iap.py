"""TCP through Identity-Aware Proxy: a socket to a port of an instance without external address.

The client's side of the relay protocol, version 4, as gcloud's ``start-iap-tunnel`` speaks it
(``api_lib/compute/iap_tunnel_websocket*.py`` of its SDK): binary WebSocket messages, big endian,
each a 16-bit tag and what belongs to it. Not here: resuming a relay session that broke; whoever
uses the socket sees it closed and opens another.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from gce_backend.errors import ConfigError, SshError, SshUnavailable
from gce_backend.urls import is_loopback

URL = "wss://tunnel.cloudproxy.app/v4"
SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
_ORIGIN = "bot:iap-tunneler"

# Tags, and what follows them.
CONNECTED = 0x0001  # u32 length, session id: the first message of the relay
DATA = 0x0004  # u32 length, at most 16384 bytes
ACK = 0x0007  # u64: how many bytes have come in, in all

MAX_DATA = 16384
_OPEN_SECONDS = 60.0  # as gcloud
_IDLE_SECONDS = 10.0
# Close codes of the relay: nobody listens or a firewall is between; not allowed, or not there.
_NO_BACKEND, _NOT_ALLOWED = 4003, 4033


def open_tunnel(
    project: str,
    zone: str,
    instance: str,
    port: int,
    *,
    url: str | None = None,
    token: Callable[[], str] | None = None,
) -> socket.socket:
    """A connected socket to ``port`` of the instance's first network interface.

    Args:
        url: another relay than Google's; ``ws://`` only on loopback, where it gets no real token.
        token: gives an OAuth access token; the application default credentials' by default.

    Raises:
        SshUnavailable: the relay, or the instance behind it, does not answer (yet).
        SshError: the relay refuses us.
        PermissionDenied: there are no credentials.
        ConfigError: the token would travel in the clear.
    """
    base = url or URL
    if not base.startswith("wss://") and not is_loopback(base):
        raise ConfigError(f"MLFLOW_GCE_IAP_URL={base}: must be wss://, or on this machine")
    if token is None:
        token = (lambda: "emulated") if is_loopback(base) else _access_token
    query = {
        "project": project,
        "port": port,
        "newWebsocket": True,
        "zone": zone,
        "instance": instance,
        "interface": "nic0",
    }
    target = f"{base.rstrip('/')}/connect?{urllib.parse.urlencode(query)}"
    with _translated(instance, port):
        relay = _connect(target, token())
        try:
            first = _receive(relay, instance, port)
            if first is None or _tag(first) != CONNECTED:
                raise SshUnavailable(f"IAP answered for {instance!r} with something unknown")
        except BaseException:
            relay.shutdown()
            raise
    relay.settimeout(None)
    ours, theirs = socket.socketpair()
    _Tunnel(relay, theirs).start()
    return ours


class _Tunnel:
    """Carries bytes between a relay and a local socket until either ends; two threads."""

    def __init__(self, relay: Any, local: socket.socket) -> None:
        self._relay = relay
        self._local = local
        self._received = 0
        self._acknowledged = 0

    def start(self) -> None:
        for work in (self._inwards, self._outwards):
            threading.Thread(target=self._until_over, args=(work,), daemon=True).start()

    def _until_over(self, work: Callable[[], None]) -> None:
        import websocket

        try:
            with contextlib.suppress(OSError, websocket.WebSocketException, struct.error):
                work()
        finally:
            # Both threads end with the first one: each waits on one of these two.
            with contextlib.suppress(OSError):
                self._local.shutdown(socket.SHUT_RDWR)
            self._local.close()
            with contextlib.suppress(OSError, websocket.WebSocketException):
                self._relay.shutdown()

    def _inwards(self) -> None:
        while (message := _receive(self._relay)) is not None:
            if _tag(message) != DATA:
                continue  # the relay's acknowledgements matter to a sender that resumes
            (length,) = struct.unpack_from(">I", message, 2)
            self._local.sendall(message[6 : 6 + length])
            self._received += length
            if self._received - self._acknowledged > 2 * MAX_DATA:
                self._acknowledge()

    def _outwards(self) -> None:
        while True:
            readable, _, _ = select.select([self._local], [], [], _IDLE_SECONDS)
            if not readable:
                self._acknowledge()
                continue
            data = self._local.recv(MAX_DATA)
            if not data:
                return
            self._relay.send_binary(struct.pack(">HI", DATA, len(data)) + data)

    def _acknowledge(self) -> None:
        received = self._received
        if received > self._acknowledged:
            self._acknowledged = received
            self._relay.send_binary(struct.pack(">HQ", ACK, received))


def _connect(target: str, token: str) -> Any:
    import websocket

    return websocket.create_connection(
        target,
        timeout=_OPEN_SECONDS,
        origin=_ORIGIN,
        subprotocols=[SUBPROTOCOL],
        header=[f"Authorization: Bearer {token}"],
        sslopt={"context": ssl.create_default_context()} if target.startswith("wss:") else {},
    )


def _receive(relay: Any, instance: str = "", port: int = 0) -> bytes | None:
    """The next binary message; None when the relay closed."""
    import websocket

    while True:
        opcode, data = relay.recv_data(control_frame=True)
        if opcode == websocket.ABNF.OPCODE_BINARY:
            return bytes(data)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            if instance:
                raise _closed(bytes(data), instance, port)
            return None


def _tag(message: bytes) -> int:
    return int.from_bytes(message[:2], "big")


def _closed(data: bytes, instance: str, port: int) -> SshError:
    code, reason = int.from_bytes(data[:2], "big"), data[2:].decode("utf-8", "replace")
    said = f"IAP closed the tunnel to {instance!r} with {code} {reason}".rstrip()
    if code == _NO_BACKEND:
        return SshUnavailable(
            f"{said}: it does not reach port {port}. The instance still boots, or its network "
            f"lacks a firewall rule that allows tcp:{port} from 35.235.240.0/20"
        )
    if code == _NOT_ALLOWED:
        return SshUnavailable(f"{said}. {_ROLE}, or the instance is not running")
    return SshUnavailable(said)


_ROLE = "You need roles/iap.tunnelResourceAccessor"


@contextlib.contextmanager
def _translated(instance: str, port: int) -> Iterator[None]:
    import websocket

    try:
        yield
    except websocket.WebSocketBadStatusException as error:
        said = f"IAP refused a tunnel to port {port} of {instance!r} (HTTP {error.status_code})"
        if error.status_code in (401, 403):
            raise SshError(
                f"{said}. {_ROLE} on it, and the API iap.googleapis.com must be enabled"
            ) from error
        raise SshUnavailable(f"{said}. {_ROLE}, or the instance is not there yet") from error
    except (websocket.WebSocketException, OSError) as error:
        raise SshUnavailable(
            f"no tunnel to {instance!r}: IAP did not answer ({str(error) or type(error).__name__})"
        ) from error


def _access_token() -> str:
    import google.auth.exceptions
    import google.auth.transport.requests

    from gce_backend.credentials import default_credentials, explain
    from gce_backend.errors import PermissionDenied

    credentials = default_credentials()
    try:
        credentials.refresh(google.auth.transport.requests.Request())
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionDenied(explain(error)) from error
    return str(credentials.token)
