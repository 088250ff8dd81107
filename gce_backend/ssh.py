"""One SSH connection to one instance, spoken only to a host that proves it is that instance.

paramiko over a socket that somebody else opened (``ssh_route.py``). Nothing is read from
``~/.ssh``: neither its config, nor known_hosts, nor keys, nor an agent.
"""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gce_backend.errors import AuthenticationRefused, HostKeyRefused, SshError, SshUnavailable
from gce_backend.ssh_state import HostKeys

if TYPE_CHECKING:
    import socket
    from pathlib import Path

# Best first. paramiko asks the host for the first kind it has a key of.
_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
_NO_LOG = logging.NullHandler()
_HANDSHAKE_SECONDS = 15.0
_KEEPALIVE_SECONDS = 30  # so that no firewall on the way forgets an idle connection


class Connection:
    """An open connection; several channels share it. Also a context manager, which closes it."""

    def __init__(self, client: Any, instance: str) -> None:
        self.instance = instance
        self._client = client

    @classmethod
    def open(
        cls, sock: socket.socket, *, instance: str, user: str, key_file: Path, host_keys: HostKeys
    ) -> Connection:
        """Shake hands over ``sock``, which the connection closes in the end.

        Args:
            instance: its name, for messages.
            host_keys: what the host must prove to hold one of.

        Raises:
            HostKeyRefused: it does not; our key has not been shown to it.
            AuthenticationRefused: it does, and does not let us in.
            SshUnavailable: it speaks no SSH, or broke off.
        """
        import paramiko

        # Its errors are told by ours; without a handler, logging would print its tracebacks.
        logging.getLogger("paramiko").addHandler(_NO_LOG)
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_Refuse())
        for kind, key in parsed(host_keys).items():
            client.get_host_keys().add(instance, kind, key)
        try:
            with _translated(instance):
                client.connect(
                    instance,
                    sock=sock,
                    username=user,
                    pkey=paramiko.Ed25519Key.from_private_key_file(str(key_file)),
                    look_for_keys=False,
                    allow_agent=False,
                    banner_timeout=_HANDSHAKE_SECONDS,
                    auth_timeout=_HANDSHAKE_SECONDS,
                )
        except BaseException:
            client.close()
            sock.close()
            raise
        client.get_transport().set_keepalive(_KEEPALIVE_SECONDS)
        return cls(client, instance)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    @property
    def is_open(self) -> bool:
        transport = self._client.get_transport()
        return transport is not None and bool(transport.is_active())

    def session(self) -> Any:
        """A new paramiko channel of the kind that runs a command or a shell.

        Raises:
            SshUnavailable: the connection broke.
        """
        with _translated(self.instance):
            if not self.is_open:
                raise SshUnavailable(f"the SSH connection to {self.instance!r} is closed")
            return self._client.get_transport().open_session(timeout=_HANDSHAKE_SECONDS)

    def start(self, command: str) -> Any:
        """A channel on which ``command`` runs, by the login's shell.

        Raises:
            SshUnavailable: the connection broke.
        """
        channel = self.session()
        with _translated(self.instance):
            channel.exec_command(command)
        return channel


def parsed(host_keys: HostKeys) -> dict[str, Any]:
    """paramiko's keys, the best kind first; what is no key is left out."""
    import paramiko

    keys: dict[str, Any] = {}
    for kind in _KINDS:
        text = host_keys.get(kind, "").split()[:1]
        # Anybody on the instance may have written it; paramiko's parsers raise all sorts of errors.
        with contextlib.suppress(Exception):
            if text:
                raw = base64.b64decode(text[0], validate=True)
                keys[kind] = paramiko.PKey.from_type_string(kind, raw)
    return keys


class _Refuse:
    """What paramiko asks about a host that shows a kind of key we have none of."""

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        raise HostKeyRefused(_wrong(hostname, key))


def _wrong(instance: str, key: Any) -> str:
    return (
        f"whoever answers for {instance!r} showed the {key.get_name()} key {key.fingerprint}, "
        "which is not the one the instance published when it booted. Nothing was said to it. "
        "Either something stands between here and the instance, or its host keys were made anew"
    )


@contextlib.contextmanager
def _translated(instance: str) -> Iterator[None]:
    """Raise our errors for paramiko's and the socket's, the most particular first."""
    import paramiko

    try:
        yield
    except SshError:
        raise
    except paramiko.BadHostKeyException as error:
        raise HostKeyRefused(_wrong(instance, error.key)) from error
    except paramiko.AuthenticationException as error:
        raise AuthenticationRefused(
            f"instance {instance!r} proved who it is and refused the run's key ({error})"
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        reason = str(error) or type(error).__name__
        raise SshUnavailable(f"no SSH session with instance {instance!r}: {reason}") from error
