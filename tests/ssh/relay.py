"""The server's side of IAP's TCP forwarding, relay version 4; gcloud itself is satisfied by it.

A session is one TCP connection; its WebSocket may break, and the client come back to it. What the
client must keep to is checked here.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
CONNECTED, RECONNECTED, DATA, ACK = 0x0001, 0x0002, 0x0004, 0x0007

Target = tuple[str, int]


@dataclass
class Session:
    """One TCP connection, and the WebSocket that there is just now."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    socket: web.WebSocketResponse | None = None
    request: web.Request | None = None
    received: int = 0
    confirmed: int = 0
    unconfirmed: bytearray = field(default_factory=bytearray)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    sending: asyncio.Task[None] | None = None

    async def send(self, data: bytes) -> None:
        """On whichever WebSocket there is; a broken one's client asks again."""
        for start in range(0, len(data), 16384):
            piece = data[start : start + 16384]
            if self.socket is not None:
                with suppress(ConnectionError):
                    await self.socket.send_bytes(struct.pack(">HI", DATA, len(piece)) + piece)

    def confirm(self, total: int) -> None:
        assert self.confirmed <= total <= self.confirmed + len(self.unconfirmed)
        del self.unconfirmed[: total - self.confirmed]
        self.confirmed = total


@dataclass
class Relay:
    """``seen``: the headers and the query of each connection; ``acks``: what clients confirmed.

    Args:
        target: where a port of an instance is; None: nothing listens there.
        status: answer the handshake with this HTTP status instead.
    """

    target: Callable[[str, int], Target | None]
    url: str = ""
    status: int = 0
    seen: list[dict[str, str]] = field(default_factory=list)
    acks: list[int] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)
    reconnected: int = 0
    sent: int = 0
    largest: int = 0
    loop: asyncio.AbstractEventLoop | None = None

    async def connect(self, request: web.Request) -> web.StreamResponse:
        self.seen.append({**request.query, **{k.lower(): v for k, v in request.headers.items()}})
        if self.status:
            return web.Response(status=self.status)
        socket = web.WebSocketResponse(protocols=[SUBPROTOCOL])
        await socket.prepare(request)
        where = self.target(request.query["instance"], int(request.query["port"]))
        try:
            assert where is not None
            session = Session(*await asyncio.open_connection(*where))
        except (AssertionError, OSError):
            await socket.close(code=4003, message=b"failed to connect to backend")
            return socket
        session.socket, session.request = socket, request
        name = f"sid-{len(self.sessions)}"
        self.sessions[name] = session
        await socket.send_bytes(
            struct.pack(f">HI{len(name)}s", CONNECTED, len(name), name.encode())
        )
        # What a client does not know must not disturb it.
        await socket.send_bytes(struct.pack(">HQ", 0x00FF, 1))
        session.sending = asyncio.create_task(self._send(session))
        session.sending.add_done_callback(lambda _: self.sessions.pop(name, None))
        await self._receive(session, socket)
        return socket

    async def reconnect(self, request: web.Request) -> web.StreamResponse:
        session = self.sessions.get(request.query["sid"])
        if self.status or session is None:
            return web.Response(status=self.status or 404)
        self.reconnected += 1
        socket = web.WebSocketResponse(protocols=[SUBPROTOCOL])
        await socket.prepare(request)
        async with session.lock:
            session.confirm(int(request.query["ack"]))
            session.socket, session.request = socket, request
            await socket.send_bytes(struct.pack(">HQ", RECONNECTED, session.received))
            await session.send(bytes(session.unconfirmed))
        await self._receive(session, socket)
        return socket

    def cut(self) -> None:
        """Break every connection, without a word; the sessions live on."""

        def cut() -> None:
            for session in self.sessions.values():
                if session.request is not None and session.request.transport is not None:
                    session.request.transport.abort()

        assert self.loop is not None
        self.loop.call_soon_threadsafe(cut)

    async def end(self) -> None:
        """Forget every session."""
        tasks = [each.sending for each in self.sessions.values() if each.sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, session: Session) -> None:
        while data := await session.reader.read(16384):
            async with session.lock:
                session.unconfirmed += data
                await session.send(data)
            self.sent += len(data)
        async with session.lock:
            if session.socket is not None:
                await session.socket.close()

    async def _receive(self, session: Session, socket: web.WebSocketResponse) -> None:
        async for message in socket:
            assert message.type == aiohttp.WSMsgType.BINARY, message
            if socket is not session.socket:
                return  # another has taken its place
            (tag,) = struct.unpack_from(">H", message.data)
            if tag == ACK:
                (confirmed,) = struct.unpack_from(">Q", message.data, 2)
                self.acks.append(confirmed)
                session.confirm(confirmed)
            elif tag == DATA:
                (length,) = struct.unpack_from(">I", message.data, 2)
                assert length == len(message.data) - 6
                self.largest = max(self.largest, length)
                session.writer.write(message.data[6:])
                session.received += length
                with suppress(ConnectionError):
                    await session.writer.drain()
                    await socket.send_bytes(struct.pack(">HQ", ACK, session.received))
        if socket.close_code not in (None, 1006):  # it said goodbye
            session.writer.close()


@contextmanager
def iap_relay(
    target: Callable[[str, int], Target | None], tls: ssl.SSLContext | None = None
) -> Iterator[Relay]:
    relay = Relay(target)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_get("/v4/connect", relay.connect)
        application.router.add_get("/v4/reconnect", relay.reconnect)
        relay.loop = loop
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        host, port = runner.addresses[0][:2]
        relay.url = f"wss://localhost:{port}/v4" if tls else f"ws://{host}:{port}/v4"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    try:
        yield relay
    finally:
        asyncio.run_coroutine_threadsafe(relay.end(), loop).result(20)
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
