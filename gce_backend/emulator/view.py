"""What an instance sees of the cloud: its environment and its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import catalog
from .cloud import PROJECT_NUMBER, Cloud
from .doors import Doors
from .guest.keys import is_true
from .guest.metadata import Tree
from .instances import Instance
from .tokens import Token


class View:
    """Of one instance; everything is read anew at each call."""

    def __init__(self, cloud: Cloud, instance: Instance, doors: Doors) -> None:
        self._cloud = cloud
        self._instance = instance
        self._doors = doors
        self.maintenance_event = "NONE"

    def environment(self) -> Mapping[str, str]:
        """Where the guest finds the cloud: the names the ecosystem uses."""
        handlers = self._cloud.handlers
        assert handlers is not None
        address, host = self._doors.address, self._doors.metadata_host
        return {
            "HOSTNAME": self._instance.name,
            "GCE_METADATA_HOST": host,
            "GCE_METADATA_IP": host,
            "STORAGE_EMULATOR_HOST": self.storage_url(),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": (
                f"http://{address}:{handlers.compute_port}/compute/v1/"
            ),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": (
                f"http://{address}:{handlers.compute_port}/"
            ),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{self.storage_url()}/storage/v1/",
            "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",
        }

    def storage_url(self) -> str:
        """As the instance reaches it."""
        assert self._cloud.handlers is not None
        return f"http://{self._doors.address}:{self._cloud.handlers.storage_port}"

    def access_token(self) -> str | None:
        """None where the instance has no service account."""
        return self._issue().value if self._instance.body["serviceAccounts"] else None

    def _issue(self) -> Token:
        instance = self._instance
        return self._cloud.tokens.issue(instance.id, instance.name, instance.scopes)

    def metadata(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """The instance's own attributes, and the project's."""
        return self._instance.metadata, self._cloud.project_metadata.items

    def attributes(self) -> dict[str, str]:
        """The instance's metadata over the project's."""
        own, common = self.metadata()
        return {**common, **own}

    @property
    def guest_attributes_are_enabled(self) -> bool:
        return is_true(self.attributes().get("enable-guest-attributes", ""))

    def put_guest_attribute(self, namespace: str, key: str, value: str | None) -> None:
        """Set it, or remove it with None.

        Raises:
            PermissionError: the instance's metadata do not allow it.
            KeyError: there is none to be removed.
        """
        if not self.guest_attributes_are_enabled:
            raise PermissionError("Guest attributes endpoint access is disabled.")
        if value is None:
            del self._instance.guest_attributes[namespace, key]
            return
        self._instance.guest_attributes[namespace, key] = value

    def tree(self) -> Tree:
        """All metadata at this moment, see :class:`.guest.metadata.Metadata`."""
        instance, project = self._instance, self._cloud.settings.project
        guest: dict[str, dict[str, str]] = {}
        for (namespace, key), value in instance.guest_attributes.items():
            guest.setdefault(namespace, {})[key] = value
        tree: dict[str, Any] = {
            "instance": {
                "attributes": dict(instance.metadata),
                "cpu-platform": catalog.family(instance.machine_type)["cpuPlatform"],
                "disks": {
                    str(number): {
                        "device-name": disk["deviceName"],
                        "index": str(number),
                        "interface": disk["interface"],
                        "mode": disk["mode"],
                        "type": disk["type"],
                    }
                    for number, disk in enumerate(instance.body["disks"])
                },
                "hostname": f"{instance.name}.{instance.zone}.c.{project}.internal",
                "id": instance.id,
                "image": instance.image.path,
                "machine-type": (f"projects/{PROJECT_NUMBER}/machineTypes/{instance.machine_type}"),
                "maintenance-event": self.maintenance_event,
                "name": instance.name,
                "network-interfaces": {"0": self._network_interface()},
                "preempted": str(instance.preempted).upper(),
                "scheduling": {
                    "automatic-restart": str(instance.scheduling["automaticRestart"]).upper(),
                    "on-host-maintenance": instance.scheduling["onHostMaintenance"],
                    "preemptible": str(instance.is_spot).upper(),
                },
                "service-accounts": self._service_accounts(),
                "tags": tuple(instance.body.get("tags", {}).get("items", [])),
                "zone": f"projects/{PROJECT_NUMBER}/zones/{instance.zone}",
            },
            "project": {
                "attributes": dict(self._cloud.project_metadata.items),
                "numeric-project-id": PROJECT_NUMBER,
                "project-id": project,
            },
        }
        if self.guest_attributes_are_enabled:
            tree["instance"]["guest-attributes"] = guest
        return tree

    def _network_interface(self) -> Tree:
        interface: Tree = {"ip": self._doors.address}
        if self._instance.body["networkInterfaces"][0].get("accessConfigs"):
            external = {"external-ip": self._doors.address, "type": "ONE_TO_ONE_NAT"}
            interface["access-configs"] = {"0": external}
        return interface

    def _service_accounts(self) -> Tree:
        shown: Tree = {}
        for account in self._instance.body["serviceAccounts"]:
            entry = {
                "aliases": ["default"],
                "email": account["email"],
                "scopes": list(account.get("scopes", [])),
                "token": self._token,
            }
            shown["default"] = shown[account["email"]] = entry
        return shown

    def _token(self) -> dict[str, object]:
        token = self._issue()
        return {
            "access_token": token.value,
            "expires_in": int(self._cloud.tokens.seconds_left(token)),
            "token_type": "Bearer",
        }
