"""The SSH server of an instance: exec, shell, SFTP and forwarding.

In-process (asyncssh), so that 200 idle instances cost nothing; what a session runs is a process of
the instance, in its namespaces where it has some. SFTP works on the files as the instance sees
them.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh

from . import streams
from .machine import Machine

KeysOf = Callable[[str], list[str]]


class SshServer:
    """Listens for one instance.

    Args:
        keys_of: a user's public keys at this moment.
        is_cut: whether the instance's network is cut.
    """

    def __init__(self, machine: Machine, keys_of: KeysOf, is_cut: Callable[[], bool]) -> None:
        self._machine = machine
        self._keys_of = keys_of
        self._is_cut = is_cut
        self._acceptor: Any = None
        self._connections: set[Any] = set()
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")

    @property
    def host_key(self) -> tuple[str, str]:
        """(type, base64) as published in the guest attributes."""
        kind, value = self._host_key.export_public_key().decode().split()[:2]
        return kind, value

    async def listen(self, address: str, port: int) -> None:
        self._acceptor = await asyncssh.listen(
            address,
            port,
            server_factory=lambda: _Connection(self),
            server_host_keys=[self._host_key],
            process_factory=self._serve,
            sftp_factory=lambda channel: _Files(channel, self._machine),
            encoding=None,
            allow_pty=True,
            line_editor=False,
            agent_forwarding=False,
        )

    def close(self) -> None:
        """Stop listening and break every connection."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        self.disconnect()

    def disconnect(self) -> None:
        """Break every connection."""
        for connection in list(self._connections):
            connection.abort()
        self._connections.clear()

    def opened(self, connection: Any) -> None:
        if self._is_cut():
            connection.abort()
        else:
            self._connections.add(connection)

    def closed(self, connection: Any) -> None:
        self._connections.discard(connection)

    def keys_of(self, user: str) -> list[str]:
        return self._keys_of(user)

    async def _serve(self, session: Any) -> None:
        """One exec or shell."""
        user = session.get_extra_info("username")
        home = self._machine.home_of(user)
        extra = {"USER": user, "LOGNAME": user, "HOME": str(home)}
        command = session.command
        if isinstance(command, bytes):
            command = command.decode()
        arguments = ["/bin/bash", "-c", command] if command else ["/bin/bash", "-l"]
        try:
            if session.get_terminal_type():
                extra["TERM"] = str(session.get_terminal_type())
                status = await self._with_terminal(session, arguments, extra, home)
            else:
                process = self._machine.spawn(arguments, extra=extra, directory=home, piped=True)
                status = await streams.connect(session, process)
            session.exit(status if status >= 0 else 128 - status)
        except (asyncssh.Error, OSError):
            session.exit(255)

    async def _with_terminal(
        self, session: Any, arguments: list[str], extra: dict[str, str], home: Path
    ) -> int:
        ours, theirs = os.openpty()
        streams.resize(ours, session.get_terminal_size())
        process = self._machine.spawn(
            ["setsid", "--ctty", "--wait", *arguments],
            extra=extra,
            directory=home,
            terminal=theirs,
        )
        os.close(theirs)
        return await streams.connect(session, process, terminal=ours)


class _Connection(asyncssh.SSHServer):
    """Authenticates by public key only; allows forwarding in both directions."""

    def __init__(self, server: SshServer) -> None:
        self._server = server
        self._connection: Any = None

    def connection_made(self, conn: Any) -> None:
        self._connection = conn
        self._server.opened(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.closed(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: Any) -> bool:
        known = (line.split()[1] for line in self._server.keys_of(username))
        offered = key.export_public_key().decode().split()[1]
        return offered in known

    def connection_requested(self, *_: object) -> bool:
        return True

    def server_requested(self, *_: object) -> bool:
        return True


class _Files(asyncssh.SFTPServer):
    """The instance's files: relative paths from the user's home, /tmp and /home its own."""

    def __init__(self, channel: Any, machine: Machine) -> None:
        super().__init__(channel)
        self._channel = channel
        self._machine = machine
        self._home = machine.home_of(channel.get_extra_info("username"))

    def map_path(self, path: bytes) -> bytes:
        whole = posixpath.normpath(os.path.join(os.fsencode(self._home), path))
        return os.fsencode(self._machine.outside(Path(os.fsdecode(whole))))

    def reverse_map_path(self, path: bytes) -> bytes:
        return path

    def exit(self) -> None:
        # Without an exit status OpenSSH's scp reports a failure after a copy that worked.
        with contextlib.suppress(OSError, asyncssh.Error):
            self._channel.exit(0)
