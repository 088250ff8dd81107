"""Our instances as Compute Engine has them, in all zones: who they are by their own labels.

What an instance says of itself is all that is needed to judge it: its run and deadline in labels,
and in its metadata the spec's ``gs://`` URI, which names the bucket to ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gce_backend.agent.paths import (
    ATTEMPT_LABEL,
    DEADLINE_LABEL,
    NAME_ATTRIBUTE,
    OWNER_LABEL,
    RUN_LABEL,
    SPEC_ATTRIBUTE,
    RunPaths,
)
from gce_backend.errors import ConfigError
from gce_backend.prices import price
from gce_backend.rest import compute_rest
from gce_backend.storage import parse_uri

#: Statuses in which no processor runs: the disk alone costs.
STOPPED = ("TERMINATED", "STOPPED", "SUSPENDED")
_FIELDS = (
    "name,zone,status,machineType,creationTimestamp,lastStartTimestamp,labels,"
    "scheduling(provisioningModel),guestAccelerators,disks(diskSizeGb,type),"
    "networkInterfaces(accessConfigs(natIP)),metadata(items)"
)


@dataclass(frozen=True)
class FoundInstance:
    """One instance with our label.

    Args:
        run_name: the MLflow run's; "" when it does not say.
        status: Compute Engine's word, such as RUNNING.
        deadline: unix seconds by its label; None when the label is not there or no number.
        bucket, paths: where its run's objects are, by its metadata; None when they do not say.
        started_at: unix seconds when it was created, or last started.
        usd_per_hour: by list price, None where the table does not know the machine.
    """

    name: str
    zone: str
    project: str
    status: str
    run_id: str
    run_name: str
    attempt: int
    owner: str
    deadline: float | None
    bucket: str | None
    paths: RunPaths | None
    machine_type: str
    spot: bool
    started_at: float
    usd_per_hour: float | None

    @property
    def where(self) -> str:
        """Flags that name it to gcloud."""
        return f"{self.name} --zone {self.zone} --project {self.project}"

    @property
    def is_stopped(self) -> bool:
        return self.status in STOPPED


class Fleet:
    """The instances of this product in one project.

    Args:
        endpoint: as in ``config.Endpoints.compute``.
    """

    def __init__(self, project: str, *, endpoint: str | None) -> None:
        self.project = project
        self._rest = compute_rest(endpoint)

    def list(self, *, run_id: str | None = None, owner: str | None = None) -> list[FoundInstance]:
        """Every instance with our label, in all zones; the oldest first.

        Args:
            run_id, owner: only those of this run, of this owner (the label's value).

        Raises:
            ComputeError, PermissionDenied: the list is not to be had, or not whole.
        """
        wanted = f"labels.{RUN_LABEL}={run_id}" if run_id else f"labels.{RUN_LABEL}:*"
        if owner:
            wanted = f"({wanted}) AND (labels.{OWNER_LABEL}={owner})"
        found = [self._found(resource) for resource in self._resources(wanted)]
        return sorted(found, key=lambda instance: (instance.started_at, instance.name))

    def start(self, instance: FoundInstance) -> None:
        """Boot a stopped instance again; its agent goes on where it was."""
        self._tell(instance, "start", f"starting instance {instance.name!r}")

    def reset(self, instance: FoundInstance) -> None:
        """Boot a running instance again without a shutdown; its agent goes on from its disk."""
        self._tell(instance, "reset", f"resetting instance {instance.name!r}")

    def _tell(self, instance: FoundInstance, verb: str, what: str) -> None:
        path = f"projects/{self.project}/zones/{instance.zone}/instances/{instance.name}/{verb}"
        self._rest.call(what, "POST", path)

    def _resources(self, label_filter: str) -> Iterator[dict[str, Any]]:
        query: dict[str, Any] = {
            "filter": label_filter,
            "maxResults": 500,
            "fields": f"items/*/instances({_FIELDS}),nextPageToken",
        }
        what = f"listing the instances of project {self.project!r}"
        while True:
            path = f"projects/{self.project}/aggregated/instances"
            page = self._rest.get(what, path, **query)
            for scope in page.get("items", {}).values():
                yield from scope.get("instances", [])
            if not page.get("nextPageToken"):
                return
            query["pageToken"] = page["nextPageToken"]

    def _found(self, resource: dict[str, Any]) -> FoundInstance:
        labels = resource.get("labels", {})
        bucket, paths = _run_paths(resource, labels[RUN_LABEL])
        started = resource.get("lastStartTimestamp") or resource["creationTimestamp"]
        return FoundInstance(
            name=resource["name"],
            zone=resource["zone"].rpartition("/")[2],
            project=self.project,
            status=resource.get("status", "UNKNOWN"),
            run_id=labels[RUN_LABEL],
            run_name=_attribute(resource, NAME_ATTRIBUTE),
            attempt=int(_number(labels.get(ATTEMPT_LABEL)) or 1),
            owner=labels.get(OWNER_LABEL, ""),
            deadline=_number(labels.get(DEADLINE_LABEL)),
            bucket=bucket,
            paths=paths,
            machine_type=resource["machineType"].rpartition("/")[2],
            spot=_is_spot(resource),
            started_at=datetime.fromisoformat(started).timestamp(),
            usd_per_hour=_usd_per_hour(resource),
        )


def _run_paths(resource: dict[str, Any], run_id: str) -> tuple[str | None, RunPaths | None]:
    uri = _attribute(resource, SPEC_ATTRIBUTE)
    end = f"/runs/{run_id}/spec.json"
    try:
        bucket, path = parse_uri(uri)
    except ConfigError:
        return None, None
    return (
        (bucket, RunPaths(path.removesuffix(end), run_id)) if path.endswith(end) else (None, None)
    )


def _attribute(resource: dict[str, Any], key: str) -> str:
    items = resource.get("metadata", {}).get("items", [])
    return next((str(item.get("value", "")) for item in items if item["key"] == key), "")


def _usd_per_hour(resource: dict[str, Any]) -> float | None:
    """The disk's type does not stand in the instance: pd-balanced, the presets' own, is assumed."""
    accelerators = (resource.get("guestAccelerators") or [{}])[0]
    interface = (resource.get("networkInterfaces") or [{}])[0]
    known = price(
        resource["machineType"].rpartition("/")[2],
        resource["zone"].rpartition("/")[2],
        spot=_is_spot(resource),
        disk_type="pd-balanced",
        disk_gb=sum(int(disk.get("diskSizeGb", 0)) for disk in resource.get("disks", [])),
        accelerator_type=_attached(accelerators),
        accelerators=int(accelerators.get("acceleratorCount", 0)),
        external_ip=bool(interface.get("accessConfigs")),
    )
    return known.usd_per_hour if known else None


def _attached(accelerators: dict[str, Any]) -> str | None:
    """The accelerator that is priced by itself; those of A2, A3 and G2 are in the type's price."""
    name = str(accelerators.get("acceleratorType", "")).rpartition("/")[2]
    return name if name == "nvidia-tesla-t4" else None


def _is_spot(resource: dict[str, Any]) -> bool:
    return bool(resource.get("scheduling", {}).get("provisioningModel") == "SPOT")


def _number(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None
