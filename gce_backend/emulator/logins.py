"""Logging in to an instance: when its SSH server answers, and whom it lets in."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING

from .cloud import Cloud
from .faults import FaultKind
from .guest.keys import authorized_keys, os_login_is_on
from .guest.machine import Machine
from .instances import Instance
from .view import View

if TYPE_CHECKING:
    from .guest.ssh import SshServer


class Logins:
    """Those of one instance; the host key outlives its stops."""

    def __init__(self, cloud: Cloud, instance: Instance, machine: Machine, view: View) -> None:
        self._cloud = cloud
        self._instance = instance
        self._machine = machine
        self._view = view
        self._server: SshServer | None = None
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Host keys first, as the guest agent does it; then, after its time, the port."""
        if self._cloud.faults.take_guest(FaultKind.NO_SSH, *self._instance.names):
            return
        # Imported here, in a thread: it takes longer than all the rest of a boot.
        ssh = await asyncio.to_thread(import_module, ".guest.ssh", __package__)
        if self._server is None:
            self._server = ssh.SshServer(self._machine, self._keys_of, self._is_cut)
        if self._view.guest_attributes_are_enabled:
            kind, key = self._server.host_key
            self._instance.guest_attributes["hostkeys", kind] = key
        self._opening = self._cloud.spawn(self._listen(self._server))

    async def _listen(self, server: SshServer) -> None:
        await self._cloud.clock.sleep(self._cloud.settings.ssh_seconds)
        assert self._cloud.handlers is not None
        await server.listen(self._instance.address, self._cloud.handlers.ssh_port)

    def close(self) -> None:
        """The guest is down, or does not come up."""
        if self._opening is not None:
            self._opening.cancel()
        if self._server is not None:
            self._server.close()

    def disconnect(self) -> None:
        """Break what is open: the network is cut."""
        if self._server is not None:
            self._server.disconnect()

    def _is_cut(self) -> bool:
        return self._cloud.faults.network_is_cut(*self._instance.names)

    def _keys_of(self, user: str) -> list[str]:
        own, common = self._view.metadata()
        if not os_login_is_on(own, common):
            return authorized_keys(user, own, common, self._cloud.clock.now())
        keys = self._cloud.os_login.keys_of(user)
        if not keys:
            self._machine.log(
                f"sshd: {user} has no key of OS Login, and ssh-keys of the metadata do not count: "
                "enable-oslogin is TRUE"
            )
        return keys
