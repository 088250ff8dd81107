"""A way to a host that can go silent: nothing passes, and no end is told of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_PIECE = 65536


class FlakyWay:
    """Forwards TCP connections to ``target`` unless ``silent`` is set."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.passing = threading.Event()
        self.passing.set()
        self.connections = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(ours)
            if not self.passing.is_set():
                continue  # as if the packets went nowhere
            self.connections += 1
            theirs = socket.create_connection(self._target, timeout=10)
            self._open.append(theirs)
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                if not self.passing.is_set():
                    return  # this connection is lost for good; neither end hears of it
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in (self._listener, *self._open):
            sock.close()


@contextlib.contextmanager
def flaky_way(target: tuple[str, int]) -> Iterator[FlakyWay]:
    way = FlakyWay(target)
    thread = threading.Thread(target=way.serve)
    thread.start()
    try:
        yield way
    finally:
        way.close()
        thread.join(timeout=10)
