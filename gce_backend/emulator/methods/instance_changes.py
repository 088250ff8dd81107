"""Instances, changed: insert, delete, stop, start, reset, metadata, labels, maintenance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .. import catalog, inserts, schema
from ..clock import rfc3339
from ..cloud import Cloud
from ..doors import open_doors
from ..errors import already_exists, check_current, invalid, not_ready
from ..images import Image
from ..instances import Instance, Status
from ..life import Life
from ..names import check_labels, check_metadata, fingerprint, last, new_id, url
from ..operations import Operation
from .arguments import Arguments, Method
from .instance_reads import find
from .requests import once

Resource = dict[str, Any]


@once
async def insert(cloud: Cloud, arguments: Arguments) -> Resource:
    project, zone = cloud.settings.project, arguments["zone"]
    body, image = inserts.checked(
        arguments.body,
        project,
        zone,
        legacy_images=cloud.settings.legacy_images,
        now=cloud.clock.now(),
    )
    life = await create(cloud, zone, body, image)
    operation = _operation(cloud, life, "insert", arguments)
    cloud.carry_out(operation, "instances.insert", life.instance.names, life.start, undo=life.erase)
    return operation.resource()


async def create(cloud: Cloud, zone: str, body: Resource, image: Image) -> Life:
    """An instance in PROVISIONING, with its disks; it does not start by itself.

    Raises:
        ApiError: 409, there is one of that name, or a disk.
    """
    project = cloud.settings.project
    key = (zone, body["name"])
    if key in cloud.lives:
        raise already_exists(f"projects/{project}/zones/{zone}/instances/{body['name']}")
    for disk in body["disks"]:
        if (zone, last(disk["source"])) in cloud.disks:
            raise already_exists(disk["source"].partition("/v1/")[2])
    assert cloud.handlers is not None
    doors = await open_doors(cloud.addresses, cloud.handlers)
    if key in cloud.lives:  # another insert was faster while the doors were opened
        doors.close()
        raise already_exists(f"projects/{project}/zones/{zone}/instances/{body['name']}")
    parameters = [disk.pop("initializeParams") for disk in body["disks"]]
    instance = Instance(
        cloud.clock,
        project,
        zone,
        body,
        image,
        address=doors.address,
        cpu_platform=catalog.family(last(body["machineType"]))["cpuPlatform"],
    )
    for disk, given in zip(body["disks"], parameters, strict=True):
        _make_disk(cloud, zone, disk, given)
    return Life(cloud, instance, doors)


def _make_disk(cloud: Cloud, zone: str, attached: Resource, parameters: Resource) -> None:
    project = cloud.settings.project
    name = last(attached["source"])
    source = parameters.get("sourceImage")
    cloud.disks[zone, name] = {
        "kind": "compute#disk",
        "id": new_id(),
        "name": name,
        "creationTimestamp": rfc3339(cloud.clock.now()),
        "sizeGb": attached["diskSizeGb"],
        "status": "READY",
        "type": url(f"projects/{project}/zones/{zone}/diskTypes/{parameters['diskType']}"),
        "zone": url(f"projects/{project}/zones/{zone}"),
        "selfLink": attached["source"],
        "labelFingerprint": fingerprint(parameters.get("labels", {})),
        "physicalBlockSizeBytes": "4096",
        **({"labels": parameters["labels"]} if "labels" in parameters else {}),
        **({"sourceImage": source} if source else {}),
    }


def _operation(cloud: Cloud, life: Life, kind: str, arguments: Arguments) -> Operation:
    instance = life.instance
    return cloud.new_operation(
        f"zones/{instance.zone}",
        kind,
        instance.path,
        instance.id,
        user=arguments.user,
        request_id=arguments.query.get("requestId"),
    )


def _changing(
    kind: str,
    method: str,
    effect: Callable[[Life], Awaitable[None]],
    check: Callable[[Instance], None] | None = None,
) -> Method:
    """A method that finds the instance, changes it in the background, answers the operation.

    Args:
        check: raises ApiError where the instance is not to be changed so.
    """

    async def change(cloud: Cloud, arguments: Arguments) -> Resource:
        life = find(cloud, arguments)
        if check is not None:
            check(life.instance)
        operation = _operation(cloud, life, kind, arguments)
        cloud.carry_out(operation, method, life.instance.names, lambda: effect(life))
        return operation.resource()

    change.__qualname__ = method
    return once(change)


def _check_unprotected(instance: Instance) -> None:
    if instance.body.get("deletionProtection"):
        raise invalid(
            f"Invalid resource usage: 'Resource cannot be deleted if it's protected against "
            f"deletion. Resource: '{instance.path}'."
        )


def _check_running(instance: Instance) -> None:
    if instance.status is not Status.RUNNING:
        raise not_ready(instance.path)


@once
async def start(cloud: Cloud, arguments: Arguments) -> Resource:
    life = find(cloud, arguments)
    status = life.instance.status
    if status is Status.STOPPING:
        raise not_ready(life.instance.path)
    operation = _operation(cloud, life, "start", arguments)

    async def effect() -> None:
        if life.instance.status is Status.TERMINATED:
            await life.start()

    cloud.carry_out(operation, "instances.start", life.instance.names, effect)
    return operation.resource()


@once
async def set_metadata(cloud: Cloud, arguments: Arguments) -> Resource:
    life = find(cloud, arguments)
    body = schema.check("Metadata", arguments.body)
    check_current("metadata", body.get("fingerprint"), life.instance.metadata_fingerprint)
    items = body.get("items", [])
    check_metadata(items)
    operation = _operation(cloud, life, "setMetadata", arguments)

    async def effect() -> None:
        check_current("metadata", body["fingerprint"], life.instance.metadata_fingerprint)
        life.instance.metadata = {item["key"]: item.get("value", "") for item in items}
        await life.metadata_changed()

    cloud.carry_out(operation, "instances.setMetadata", life.instance.names, effect)
    return operation.resource()


@once
async def set_labels(cloud: Cloud, arguments: Arguments) -> Resource:
    life = find(cloud, arguments)
    body = schema.check("InstancesSetLabelsRequest", arguments.body)
    check_current("labels", body.get("labelFingerprint"), life.instance.label_fingerprint)
    labels = body.get("labels", {})
    check_labels(labels)
    operation = _operation(cloud, life, "setLabels", arguments)

    async def effect() -> None:
        check_current("labels", body["labelFingerprint"], life.instance.label_fingerprint)
        life.instance.labels = dict(labels)

    cloud.carry_out(operation, "instances.setLabels", life.instance.names, effect)
    return operation.resource()


METHODS: dict[str, Method] = {
    "instances.insert": insert,
    "instances.delete": _changing("delete", "instances.delete", Life.delete, _check_unprotected),
    "instances.stop": _changing("stop", "instances.stop", Life.stop),
    "instances.start": start,
    "instances.reset": _changing("reset", "instances.reset", Life.reset, _check_running),
    "instances.setMetadata": set_metadata,
    "instances.setLabels": set_labels,
    "instances.simulateMaintenanceEvent": _changing(
        "compute.instances.simulateMaintenanceEvent",
        "instances.simulateMaintenanceEvent",
        Life.maintain,
        _check_running,
    ),
}
