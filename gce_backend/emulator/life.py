"""What happens to an instance: boot, stop, reset, preemption, deletion.

Joins the record the API shows (``instances.py``) with what really runs (``guest/``). Every change
holds the instance's lock; a stop or a delete that comes during the boot ends the boot first.
"""

from __future__ import annotations

import asyncio
import time

from . import catalog
from .cloud import Cloud, InstanceVanished
from .doors import Doors
from .faults import FaultKind
from .guest import standins
from .guest.machine import Machine
from .guest.metadata import Metadata
from .guest.scripts import ScriptRunner
from .instances import Instance, Status
from .logins import Logins
from .operations import Operation
from .view import View

_SPOT_SHUTDOWN_SECONDS = 30.0  # Google, "Preemption process"


class Life:
    """One instance from its insert to its deletion."""

    def __init__(self, cloud: Cloud, instance: Instance, doors: Doors) -> None:
        self.cloud = cloud
        self.instance = instance
        self.gone = False
        self._doors = doors
        self._lock = asyncio.Lock()
        self._boot: asyncio.Task[None] | None = None  # provisioning, then the guest's boot
        self._expiry: asyncio.Task[None] | None = None
        self._view = View(cloud, instance, doors)
        self.metadata = Metadata(self._view.tree, self._view.put_guest_attribute)
        self.machine = Machine(
            cloud.settings.root / "instances" / instance.zone / instance.name,
            f"{cloud.settings.mark}/{instance.id}",
            self._view.environment(),
            isolated=cloud.settings.isolated,
            groups=cloud.limits.make(instance.id, *catalog.size(instance.machine_type)),
        )
        self._scripts = ScriptRunner(
            self.machine, self._view.metadata, self._view.storage_url, self._view.access_token
        )
        self._logins = Logins(cloud, instance, self.machine, self._view)
        cloud.lives[instance.zone, instance.name] = self
        cloud.by_address[doors.address] = self

    @property
    def is_running(self) -> bool:
        return not self.gone and self.instance.status is Status.RUNNING

    # -- up -------------------------------------------------------------------------------------

    @property
    def guest_attributes_enabled(self) -> bool:
        return self._view.guest_attributes_are_enabled

    async def start(self) -> None:
        """PROVISIONING to RUNNING, if no stop is faster; the guest boots on in the background.

        Raises:
            InstanceVanished: it was deleted meanwhile.
        """
        if self.instance.status is Status.TERMINATED and not self.gone:
            self.instance.advance(Status.PROVISIONING)
            self.instance.preempted = False
        if not self.gone and self.instance.status is Status.PROVISIONING:
            boot = self._boot = self.cloud.spawn(self._provision())
            await asyncio.wait([boot])
            if not boot.cancelled():
                boot.result()
            if self.is_running:
                self._boot = self.cloud.spawn(self._boot_guest())
                return
        async with self._lock:  # what came between is at its end only then
            if self.gone:
                raise InstanceVanished

    async def _provision(self) -> None:
        quarter = self.cloud.settings.boot_seconds / 4
        await self.cloud.clock.sleep(quarter)
        self.instance.advance(Status.STAGING)
        await self.cloud.clock.sleep(quarter)
        await self._furnish()
        self.instance.advance(Status.RUNNING)
        self._limit_run_time()
        await self.metadata.changed()

    async def _furnish(self) -> None:
        machine = self.machine
        await machine.turn_on(self.instance.name, self._doors.address)
        python = standins.image_python(self.instance.image, machine.directory)
        standins.install(
            machine.bin,
            python=python,
            host=self._doors.address,
            port=self._doors.metadata_port,
        )

    async def _boot_guest(self) -> None:
        await self.cloud.clock.sleep(self.cloud.settings.boot_seconds / 2)
        self.machine.log(f"{self.instance.name} login: (emulated {self.instance.image.name})")
        await self._logins.open()
        if not self.cloud.faults.take_guest(FaultKind.NO_STARTUP_SCRIPT, *self.instance.names):
            await self._scripts.run("startup")

    def disconnect(self) -> None:
        """Break what is open: the network is cut."""
        self._logins.disconnect()

    def _limit_run_time(self) -> None:
        moment = self.instance.termination_at
        if moment is not None:
            self._expiry = self.cloud.spawn(self._expire(moment))

    async def _expire(self, moment: float) -> None:
        await self.cloud.clock.sleep_until(moment)
        self._expiry = None
        delete = self.instance.termination_action == "DELETE"
        operation = self._system_operation("delete" if delete else "stop")
        await (self.delete() if delete else self.stop())
        operation.finish()

    # -- down -----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """To TERMINATED, with a shutdown the guest notices."""
        async with self._lock:
            if self.gone or self.instance.status is Status.TERMINATED:
                return
            await self._halt()
            self.instance.advance(Status.TERMINATED)

    async def delete(self) -> None:
        """Shut down, then remove every trace."""
        async with self._lock:
            if self.gone:
                return
            await self._halt()
            await self._remove()

    async def power_off(self) -> None:
        """The power is gone: no notice, no shutdown script.

        Raises:
            ValueError: it is not running.
        """
        async with self._lock:
            if not self.is_running:
                raise ValueError(f"{self.instance.name} is {self.instance.status}, not RUNNING")
            operation = self._system_operation("compute.instances.hostError")
            self._forget_plans()
            await self.machine.kill()
            self.instance.advance(Status.TERMINATED)
            operation.finish()

    async def preempt(self) -> None:
        """Take a spot instance back: the notice, a shutdown, then its termination action."""
        operation = self._system_operation("compute.instances.preempted")
        self.instance.preempted = True
        await self.metadata.changed()
        notice = self.instance.scheduling.get("preemptionNoticeDuration", {})
        await self.cloud.clock.sleep(float(notice.get("seconds", 0)))
        delete = self.instance.termination_action == "DELETE"
        await (self.delete() if delete else self.stop())
        operation.finish()

    async def reset(self) -> None:
        """The reset button: no notice, and up again; the status stays RUNNING."""
        async with self._lock:
            if not self.is_running:
                return
            self._cancel_boot()
            await self.machine.kill()
            await self._furnish()
            self._boot = self.cloud.spawn(self._boot_guest())

    async def maintain(self) -> None:
        """A maintenance event: a spot instance is preempted, one that cannot migrate restarts."""
        if self.instance.is_spot:
            await self.preempt()
            return
        if self.instance.scheduling["onHostMaintenance"] == "MIGRATE":
            await self._announce("MIGRATE_ON_HOST_MAINTENANCE")
            await self.cloud.clock.sleep(self.cloud.settings.boot_seconds)
        else:
            await self._announce("TERMINATE_ON_HOST_MAINTENANCE")
            await self.stop()
            if not self.gone and self.instance.scheduling["automaticRestart"]:
                await self.start()
        await self._announce("NONE")

    async def _announce(self, event: str) -> None:
        self._view.maintenance_event = event
        await self.metadata.changed()

    async def metadata_changed(self) -> None:
        """Attributes of the instance or the project are others now."""
        await self.metadata.changed()

    async def power_from_inside(self, action: str) -> None:
        """``poweroff`` (``off``) or ``reboot``, called on the instance."""
        if action == "reboot":
            async with self._lock:
                if not self.is_running:  # called by what ran as it went down
                    return
                self._cancel_boot()
                await self._shut_down()
                await self._furnish()
                self._boot = self.cloud.spawn(self._boot_guest())
            return
        operation = self._system_operation("compute.instances.guestTerminate")
        await self.stop()
        operation.finish()

    async def erase(self) -> None:
        """End it without notice and remove every trace; whatever its disks say, they go too."""
        async with self._lock:
            if not self.gone:
                await self._remove(all_disks=True)

    async def _remove(self, *, all_disks: bool = False) -> None:
        self.gone = True
        self._forget_plans()
        await self.machine.kill()
        self.cloud.limits.remove(self.instance.id)
        await self.metadata.close()
        self._doors.close()
        await self.machine.remove()
        instance = self.instance
        self.cloud.tokens.forget(instance.id)
        self.cloud.lives.pop((instance.zone, instance.name), None)
        self.cloud.by_address.pop(self._doors.address, None)
        for disk in instance.body["disks"]:
            name = disk["source"].rsplit("/", 1)[-1]
            if all_disks or disk["autoDelete"]:
                self.cloud.disks.pop((instance.zone, name), None)

    async def _halt(self) -> None:
        """To STOPPING, and until no process is left."""
        was_running = self.instance.status is Status.RUNNING
        self._forget_plans()
        self.instance.advance(Status.STOPPING)
        if was_running:
            await self._shut_down()
        await self.machine.kill()

    async def _shut_down(self) -> None:
        """SIGTERM to all and the shutdown script, at the same time, as systemd does both."""
        seconds = self.cloud.settings.shutdown_seconds
        if self.instance.is_spot:
            seconds = min(seconds, _SPOT_SHUTDOWN_SECONDS)
        self.machine.terminate()
        script = self.cloud.spawn(self._scripts.run("shutdown"))
        deadline = time.monotonic() + seconds
        await asyncio.wait([script], timeout=seconds)
        script.cancel()
        await self.machine.gone(deadline - time.monotonic())
        await self.machine.kill()

    def _forget_plans(self) -> None:
        self._cancel_boot()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _cancel_boot(self) -> None:
        """The guest does not come up any further; SSH is gone with it."""
        if self._boot is not None:
            self._boot.cancel()
        self._logins.close()

    def _system_operation(self, kind: str) -> Operation:
        instance = self.instance
        operation = self.cloud.new_operation(
            f"zones/{instance.zone}", kind, instance.path, instance.id, user="system"
        )
        operation.start()
        return operation
