"""TCP through Identity-Aware Proxy: a socket to a port of an instance without external address.

The client's side of the relay protocol, version 4, as gcloud's ``start-iap-tunnel`` speaks it
(``api_lib/compute/iap_tunnel_websocket*.py`` of its SDK): binary WebSocket messages, big endian,
each a 16-bit tag and what belongs to it. A connection that breaks is made again, and goes on with
what the other side had not confirmed; a close that the relay sends is the end.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from gce_backend.errors import ConfigError, GceBackendError, SshError, SshUnavailable
from gce_backend.urls import is_loopback

URL = "wss://tunnel.cloudproxy.app/v4"
SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
_ORIGIN = "bot:iap-tunneler"

# Tags, and what follows them.
CONNECTED = 0x0001  # u32 length, session id: the first message of the relay
RECONNECTED = 0x0002  # u64: how many of our bytes have come in, in all
DATA = 0x0004  # u32 length, at most 16384 bytes
ACK = 0x0007  # u64: how many bytes have come in, in all

MAX_DATA = 16384
_OPEN_SECONDS = 60.0  # as gcloud
_IDLE_SECONDS = 10.0
# As gcloud: at once, after 1.5 s, then a tenth longer each time up to 20 s, for 15 minutes.
_FIRST_PAUSE, _PAUSE_FACTOR, _LONGEST_PAUSE, _GIVE_UP_SECONDS = 1.5, 1.1, 20.0, 900.0
_MOST_UNCONFIRMED = 8 * 1024 * 1024  # bytes; whoever writes more waits
_REAUTHENTICATE = 4004  # the one close that is no end: the token has expired
# A network that goes silent tells nobody: the kernel asks, and gives up after half a minute.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 10),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 4),
            ("TCP_USER_TIMEOUT", 30_000),
        )
        if hasattr(socket, name)
    ),
]
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
            first = _receive(relay)
            if _tag(first) != CONNECTED:
                raise SshUnavailable(f"IAP answered for {instance!r} with something unknown")
        except _Closed as closed:
            relay.shutdown()
            raise _refusal(closed, instance, port) from closed
        except BaseException:
            relay.shutdown()
            raise
    session = first[6:].decode()

    def again(received: int) -> Any:
        asked = {"sid": session, "ack": received, "newWebsocket": True, "zone": zone}
        return _connect(f"{base.rstrip('/')}/reconnect?{urllib.parse.urlencode(asked)}", token())

    relay.settimeout(None)
    ours, theirs = socket.socketpair()
    _Tunnel(relay, theirs, again).start()
    return ours


class _Tunnel:
    """Carries bytes between a relay and a local socket until either ends; two threads.

    ``_inwards`` owns the connection: it alone makes it again. ``_outwards`` sends on whichever
    there is; what it sent is kept until the relay confirms it.

    Args:
        again: connects to the same session, with how many bytes have come in.
    """

    def __init__(self, relay: Any, local: socket.socket, again: Callable[[int], Any]) -> None:
        self._relay = relay
        self._local = local
        self._again = again
        self._received = 0
        self._acknowledged = 0
        self._confirmed = 0  # of what we sent
        self._unconfirmed = bytearray()
        self._state = threading.Condition()  # of the two above, and of which relay it is
        self._sending = threading.Lock()  # data go in order; taken before _state
        self._acknowledging = threading.Lock()
        self._over = threading.Event()

    def start(self) -> None:
        for work in (self._inwards, self._outwards):
            threading.Thread(target=self._until_over, args=(work,), daemon=True).start()

    def _until_over(self, work: Callable[[], None]) -> None:
        import websocket

        try:
            with contextlib.suppress(OSError, websocket.WebSocketException, struct.error):
                work()
        finally:
            # Both threads end with the first one: each waits on one of these.
            self._over.set()
            with self._state:
                self._state.notify_all()
            with contextlib.suppress(OSError):
                self._local.shutdown(socket.SHUT_RDWR)
            self._local.close()
            with contextlib.suppress(OSError, websocket.WebSocketException):
                self._relay.send_close()  # or the relay would wait for us to come back
            _break(self._relay)
            if work == self._inwards:  # nobody waits on it any more
                self._relay.shutdown()

    def _inwards(self) -> None:
        while True:
            message = self._next()
            if message is None and not self._reconnect():
                return
            tag = _tag(message) if message else 0
            if message and tag == DATA:
                (length,) = struct.unpack_from(">I", message, 2)
                self._local.sendall(message[6 : 6 + length])
                self._received += length
                if self._received - self._acknowledged > 2 * MAX_DATA:
                    self._acknowledge()
            elif message and tag == ACK:
                self._confirm(struct.unpack_from(">Q", message, 2)[0])

    def _next(self) -> bytes | None:
        """The next message; None: the connection broke, and may be made again.

        Raises:
            OSError: the relay has closed the session.
        """
        import websocket

        try:
            return _receive(self._relay)
        except _Closed as closed:
            if closed.code == _REAUTHENTICATE:
                return None
            raise OSError("the relay has closed the tunnel") from closed
        except (OSError, websocket.WebSocketException):
            return None

    def _outwards(self) -> None:
        while not self._over.is_set():
            readable, _, _ = select.select([self._local], [], [], _IDLE_SECONDS)
            if not readable:
                self._acknowledge()
                continue
            data = self._local.recv(MAX_DATA)
            if not data:
                return
            with self._state:
                while len(self._unconfirmed) > _MOST_UNCONFIRMED and not self._over.is_set():
                    self._state.wait()
                self._unconfirmed += data
                relay = self._relay
            with self._sending:
                if relay is self._relay:  # else it was sent when the connection was made again
                    _try_to_send(relay, struct.pack(">HI", DATA, len(data)) + data)

    def _confirm(self, total: int) -> None:
        with self._state:
            if not self._confirmed <= total <= self._confirmed + len(self._unconfirmed):
                raise OSError(f"the relay confirms {total} bytes, which were never sent")
            del self._unconfirmed[: total - self._confirmed]
            self._confirmed = total
            self._state.notify_all()

    def _reconnect(self) -> bool:
        """Whether the session goes on, on a new connection."""
        import websocket

        pause, end = _FIRST_PAUSE, time.monotonic() + _GIVE_UP_SECONDS
        while not self._over.is_set() and time.monotonic() < end:
            _break(self._relay)
            self._relay.shutdown()
            try:
                self._go_on(self._again(self._received))
                return True
            except websocket.WebSocketBadStatusException as error:
                if 400 <= error.status_code < 500:
                    return False  # it knows the session no more
            except (_Closed, GceBackendError):
                return False
            except (OSError, websocket.WebSocketException):
                pass
            self._over.wait(pause)
            pause = min(pause * _PAUSE_FACTOR, _LONGEST_PAUSE)
        return False

    def _go_on(self, relay: Any) -> None:
        """Hear what has come in, and send the rest of what was sent."""
        first = _receive(relay)
        if _tag(first) != RECONNECTED:
            raise _Closed(b"")
        relay.settimeout(None)
        self._confirm(struct.unpack_from(">Q", first, 2)[0])
        with self._sending:
            with self._state:
                self._relay, left = relay, bytes(self._unconfirmed)
                self._acknowledged = self._received
            for start in range(0, len(left), MAX_DATA):
                data = left[start : start + MAX_DATA]
                _try_to_send(relay, struct.pack(">HI", DATA, len(data)) + data)

    def _acknowledge(self) -> None:
        with self._acknowledging:
            received = self._received
            if received > self._acknowledged:
                self._acknowledged = received
                _try_to_send(self._relay, struct.pack(">HQ", ACK, received))


def _try_to_send(relay: Any, message: bytes) -> None:
    """A connection that is broken is left to who reads from it."""
    import websocket

    try:
        relay.send_binary(message)
    except (OSError, websocket.WebSocketException):
        _break(relay)


def _break(relay: Any) -> None:
    """Wake whoever waits on it; closing the descriptor alone would not."""
    with contextlib.suppress(OSError):
        relay.abort()


def _connect(target: str, token: str) -> Any:
    import websocket

    return websocket.create_connection(
        target,
        timeout=_OPEN_SECONDS,
        origin=_ORIGIN,
        subprotocols=[SUBPROTOCOL],
        sockopt=_KEEPALIVE,
        header=[f"Authorization: Bearer {token}"],
        sslopt={"context": ssl.create_default_context()} if target.startswith("wss:") else {},
    )


class _Closed(Exception):
    """The relay sent a close: its code and reason."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.code = int.from_bytes(data[:2], "big")
        self.reason = data[2:].decode("utf-8", "replace")


def _receive(relay: Any) -> bytes:
    """The next binary message. Raises _Closed."""
    import websocket

    while True:
        opcode, data = relay.recv_data(control_frame=True)
        if opcode == websocket.ABNF.OPCODE_BINARY:
            return bytes(data)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise _Closed(bytes(data))


def _tag(message: bytes) -> int:
    return int.from_bytes(message[:2], "big")


def _refusal(closed: _Closed, instance: str, port: int) -> SshError:
    code = closed.code
    said = f"IAP closed the tunnel to {instance!r} with {code} {closed.reason}".rstrip()
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
