"""A host that is not the instance, and notes what is said to it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import paramiko


class _Interface(paramiko.ServerInterface):
    def __init__(self, heard: list[str]) -> None:
        self._heard = heard

    def get_allowed_auths(self, username: str) -> str:
        self._heard.append(username)
        return "publickey,password"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._heard.append(username)
        return paramiko.AUTH_SUCCESSFUL


class Rogue:
    """``heard``: the user names that somebody tried to log in with."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heard: list[str] = []
        self.connections = 0


@contextlib.contextmanager
def rogue_host() -> Iterator[Rogue]:
    listener = socket.create_server(("127.0.0.1", 0))
    rogue = Rogue(listener.getsockname()[1])
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        key = paramiko.RSAKey.generate(2048)
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            rogue.connections += 1
            transport = paramiko.Transport(sock)
            transport.add_server_key(key)
            transports.append(transport)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=_Interface(rogue.heard))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield rogue
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=10)
        for transport in transports:
            transport.close()
