"""The server's side of IAP's TCP forwarding, relay version 4; gcloud itself is satisfied by it.

One WebSocket, one TCP connection. What the client must keep to is checked here.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
CONNECTED, DATA, ACK = 0x0001, 0x0004, 0x0007

Target = tuple[str, int]


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
    sent: int = 0
    largest: int = 0

    async def connect(self, request: web.Request) -> web.StreamResponse:
        self.seen.append({**request.query, **{k.lower(): v for k, v in request.headers.items()}})
        if self.status:
            return web.Response(status=self.status)
        socket = web.WebSocketResponse(protocols=[SUBPROTOCOL])
        await socket.prepare(request)
        where = self.target(request.query["instance"], int(request.query["port"]))
        try:
            assert where is not None
            reader, writer = await asyncio.open_connection(*where)
        except (AssertionError, OSError):
            await socket.close(code=4003, message=b"failed to connect to backend")
            return socket
        await socket.send_bytes(struct.pack(">HI3s", CONNECTED, 3, b"sid"))
        sending = asyncio.ensure_future(self._send(reader, socket))
        try:
            await self._receive(socket, writer)
        finally:
            sending.cancel()
            writer.close()
        return socket

    async def _send(self, reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
        # What a client does not know must not disturb it.
        await socket.send_bytes(struct.pack(">HQ", 0x00FF, 1))
        while data := await reader.read(16384):
            await socket.send_bytes(struct.pack(">HI", DATA, len(data)) + data)
            self.sent += len(data)
        await socket.close()

    async def _receive(self, socket: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
        received = 0
        async for message in socket:
            assert message.type == aiohttp.WSMsgType.BINARY, message
            (tag,) = struct.unpack_from(">H", message.data)
            if tag == ACK:
                (confirmed,) = struct.unpack_from(">Q", message.data, 2)
                self.acks.append(confirmed)
            elif tag == DATA:
                (length,) = struct.unpack_from(">I", message.data, 2)
                assert length == len(message.data) - 6
                self.largest = max(self.largest, length)
                writer.write(message.data[6:])
                await writer.drain()
                received += length
                await socket.send_bytes(struct.pack(">HQ", ACK, received))
        writer.close()


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
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
