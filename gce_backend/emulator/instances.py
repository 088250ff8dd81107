"""An instance as the API shows it: its resource, and the table of its statuses.

::

                    start, restart
              +-----------------------------------+
              v                                   |
    PROVISIONING > STAGING > RUNNING > STOPPING > TERMINATED
         |            |         |         ^  |        |  ^
         +------------+---------+---------+  +> gone  |  |
                                |         ^           |  |
                                |         +-----------+  |   delete of a stopped one
                                +------------------------+   power lost: no notice

"Gone" is no status: the resource is removed, out of STOPPING. An insert that finds no capacity
removes it out of PROVISIONING.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from .clock import Clock, rfc3339
from .images import Image
from .names import fingerprint, last, new_id, url
from .operations import IllegalTransition


@enum.unique
class Status(enum.StrEnum):
    PROVISIONING = "PROVISIONING"
    STAGING = "STAGING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    TERMINATED = "TERMINATED"


NEXT: dict[Status, frozenset[Status]] = {
    Status.PROVISIONING: frozenset({Status.STAGING, Status.STOPPING}),
    Status.STAGING: frozenset({Status.RUNNING, Status.STOPPING}),
    Status.RUNNING: frozenset({Status.STOPPING, Status.TERMINATED}),
    Status.STOPPING: frozenset({Status.TERMINATED}),
    Status.TERMINATED: frozenset({Status.PROVISIONING, Status.STOPPING}),
}


class Instance:
    """The record of one instance.

    Args:
        body: the insert's body, checked, with references resolved (see ``inserts.py``).
        address: the loopback address all its servers listen on.
    """

    def __init__(
        self,
        clock: Clock,
        project: str,
        zone: str,
        body: dict[str, Any],
        image: Image,
        *,
        address: str,
        cpu_platform: str,
    ) -> None:
        self._clock = clock
        self.project = project
        self.zone = zone
        self.name: str = body["name"]
        self.id = new_id()
        self.image = image
        self.address = address
        self.body = body
        self.status = Status.PROVISIONING
        self.created_at = clock.now()
        self.started_at: float | None = None  # last time it became RUNNING
        self.stopped_at: float | None = None
        self.preempted = False
        self.guest_attributes: dict[tuple[str, str], str] = {}
        self.labels: dict[str, str] = dict(body.get("labels", {}))
        self.metadata: dict[str, str] = {
            item["key"]: item.get("value", "") for item in body.get("metadata", {}).get("items", [])
        }
        self._cpu_platform = cpu_platform

    def advance(self, to: Status) -> None:
        if to not in NEXT[self.status]:
            raise IllegalTransition(f"instance {self.name}: {self.status} to {to}")
        self.status = to
        if to is Status.RUNNING:
            self.started_at = self._clock.now()
        if to is Status.TERMINATED:
            self.stopped_at = self._clock.now()

    @property
    def path(self) -> str:
        return f"projects/{self.project}/zones/{self.zone}/instances/{self.name}"

    @property
    def names(self) -> tuple[str, str]:
        """How a fault may call it."""
        return (self.name, f"{self.zone}/{self.name}")

    @property
    def scheduling(self) -> dict[str, Any]:
        given: dict[str, Any] = self.body.get("scheduling", {})
        spot = given.get("provisioningModel") == "SPOT" or given.get("preemptible", False)
        return {
            "onHostMaintenance": "TERMINATE" if spot else "MIGRATE",
            "automaticRestart": not spot,
            "provisioningModel": "SPOT" if spot else "STANDARD",
            **given,
            "preemptible": spot,
        }

    @property
    def is_spot(self) -> bool:
        return bool(self.scheduling["preemptible"])

    @property
    def termination_action(self) -> str:
        return str(self.scheduling.get("instanceTerminationAction", "STOP"))

    @property
    def termination_at(self) -> float | None:
        """When the run time is over; None while stopped, for a stop clears it.

        ``terminationTime`` stays; ``maxRunDuration`` counts from the last start.
        """
        if self.started_at is None or self.status is not Status.RUNNING:
            return None
        if moment := self.scheduling.get("terminationTime"):
            return datetime.fromisoformat(moment).timestamp()
        duration = self.scheduling.get("maxRunDuration")
        if duration is None:
            return None
        return self.started_at + int(duration["seconds"]) + int(duration.get("nanos", 0)) / 1e9

    @property
    def scopes(self) -> frozenset[str]:
        return frozenset(
            scope
            for account in self.body.get("serviceAccounts", [])
            for scope in account.get("scopes", [])
        )

    @property
    def machine_type(self) -> str:
        return last(self.body["machineType"])

    @property
    def metadata_fingerprint(self) -> str:
        return fingerprint(self.metadata)

    @property
    def label_fingerprint(self) -> str:
        return fingerprint(self.labels)

    def metadata_resource(self) -> dict[str, Any]:
        items = [{"key": key, "value": value} for key, value in self.metadata.items()]
        return {
            "kind": "compute#metadata",
            "fingerprint": self.metadata_fingerprint,
            **({"items": items} if items else {}),
        }

    def resource(self) -> dict[str, Any]:
        """The API's Instance."""
        tags = self.body.get("tags", {}).get("items", [])
        times = {
            "creationTimestamp": self.created_at,
            "lastStartTimestamp": self.started_at,
            "lastStopTimestamp": self.stopped_at,
        }
        return {
            **self.body,
            "kind": "compute#instance",
            "id": self.id,
            **{key: rfc3339(moment) for key, moment in times.items() if moment is not None},
            "status": self.status.value,
            "zone": url(f"projects/{self.project}/zones/{self.zone}"),
            "selfLink": url(self.path),
            "cpuPlatform": self._cpu_platform,
            "tags": {"fingerprint": fingerprint(tags), **({"items": tags} if tags else {})},
            "metadata": self.metadata_resource(),
            **({"labels": self.labels} if self.labels else {}),
            "labelFingerprint": self.label_fingerprint,
            "scheduling": self.scheduling,
            "canIpForward": self.body.get("canIpForward", False),
            "deletionProtection": self.body.get("deletionProtection", False),
            "startRestricted": False,
            "networkInterfaces": self._networks(),
            "resourceStatus": self._resource_status(),
            "fingerprint": fingerprint([self.id, self.labels, self.metadata, self.status]),
        }

    def _networks(self) -> list[dict[str, Any]]:
        shown = []
        for number, given in enumerate(self.body.get("networkInterfaces", [])):
            interface = {
                **given,
                "kind": "compute#networkInterface",
                "name": f"nic{number}",
                "networkIP": self.address,
                "stackType": "IPV4_ONLY",
                "fingerprint": fingerprint(given),
            }
            if configs := given.get("accessConfigs"):
                interface["accessConfigs"] = [self._access_config(config) for config in configs]
            shown.append(interface)
        return shown

    def _access_config(self, given: dict[str, Any]) -> dict[str, Any]:
        # A stopped instance has given its ephemeral address back.
        address = {} if self.status is Status.TERMINATED else {"natIP": self.address}
        return {
            "name": "external-nat",
            "type": "ONE_TO_ONE_NAT",
            "networkTier": "PREMIUM",
            **given,
            "kind": "compute#accessConfig",
            **address,
        }

    def _resource_status(self) -> dict[str, Any]:
        moment = self.termination_at
        if moment is None:
            return {"scheduling": {}}
        return {"scheduling": {"terminationTimestamp": rfc3339(moment)}}
