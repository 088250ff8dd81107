"""regionInstances.bulkInsert: so many instances of one kind, in one zone of a region."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from .. import catalog, inserts, schema
from ..cloud import Cloud
from ..errors import ApiError, invalid_field, required_field
from ..life import Life
from ..names import last, new_id
from .arguments import Arguments, Method
from .instance_changes import create
from .requests import once

_MOST = 1000

Resource = dict[str, Any]


@once
async def bulk_insert(cloud: Cloud, arguments: Arguments) -> Resource:
    """All of ``count``, or none; in the first allowed zone that offers the machine type."""
    region = arguments["region"]
    body = schema.check("BulkInsertInstanceResource", arguments.body)
    properties = body.get("instanceProperties")
    if properties is None:
        raise required_field("instanceProperties")
    names = _names(body)
    zone = _zone(region, body, str(properties.get("machineType", "")))
    lives: list[Life] = []
    try:
        for name in names:
            lives.append(await _one(cloud, zone, name, properties, body))
    except ApiError:
        await asyncio.gather(*(life.erase() for life in lives))
        raise
    operation = cloud.new_operation(
        f"regions/{region}",
        "bulkInsert",
        f"projects/{cloud.settings.project}/regions/{region}/instances",
        new_id(),
        user=arguments.user,
        request_id=arguments.query.get("requestId"),
    )

    async def start() -> None:
        await asyncio.gather(*(life.start() for life in lives))

    async def undo() -> None:
        await asyncio.gather(*(life.erase() for life in lives))

    cloud.carry_out(
        operation,
        "regionInstances.bulkInsert",
        (region, f"{zone}/{names[0]}"),
        start,
        undo=undo,
        zone=zone,
    )
    return operation.resource()


async def _one(cloud: Cloud, zone: str, name: str, properties: Resource, body: Resource) -> Life:
    """Properties name types without a zone; an insert wants their URLs."""
    own = body.get("perInstanceProperties", {}).get(name, {})
    whole = {**properties, "name": own.get("name", name)}
    whole["machineType"] = f"zones/{zone}/machineTypes/{last(whole.get('machineType', ''))}"
    disks = []
    for disk in whole.get("disks", []):
        parameters = dict(disk.get("initializeParams", {}))
        if "diskType" in parameters:
            parameters["diskType"] = f"zones/{zone}/diskTypes/{last(parameters['diskType'])}"
        disks.append({**disk, "initializeParams": parameters})
    checked, image = inserts.checked(
        {**whole, "disks": disks},
        cloud.settings.project,
        zone,
        legacy_images=cloud.settings.legacy_images,
        now=cloud.clock.now(),
    )
    return await create(cloud, zone, checked, image)


def _names(body: Resource) -> list[str]:
    count = int(body.get("count", 0))
    if not 1 <= count <= _MOST:
        raise invalid_field("count", count, f"Must be between 1 and {_MOST}.")
    if given := body.get("perInstanceProperties"):
        return list(given)[:count]
    pattern = body.get("namePattern", "")
    place = re.search("#+", pattern)
    if place is None:
        raise invalid_field("namePattern", pattern, "Must contain a sequence of '#'.")
    width = len(place.group())
    return [
        f"{pattern[: place.start()]}{number:0{width}d}{pattern[place.end() :]}"
        for number in range(1, count + 1)
    ]


def _zone(region: str, body: Resource, machine: str) -> str:
    locations = body.get("locationPolicy", {}).get("locations", {})
    denied = {last(zone) for zone, how in locations.items() if how.get("preference") == "DENY"}
    allowed = {last(zone) for zone, how in locations.items() if how.get("preference") == "ALLOW"}
    for zone, of in catalog.zones().items():
        if of != region or zone in denied or (allowed and zone not in allowed):
            continue
        if catalog.machine_type(zone, last(machine)) is not None:
            return zone
    raise invalid_field(
        "instanceProperties.machineType",
        machine,
        f"Machine type with name '{last(machine)}' does not exist in region '{region}'.",
    )


METHODS: dict[str, Method] = {"regionInstances.bulkInsert": bulk_insert}
