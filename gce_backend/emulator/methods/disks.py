"""Disks: get, list, aggregatedList, delete. They come into being with their instance."""

from __future__ import annotations

from typing import Any

from .. import catalog
from ..cloud import Cloud
from ..errors import ApiError, not_found
from ..lists import aggregated, page
from ..names import url
from .arguments import Arguments, Method
from .catalog import get_zone
from .requests import once

Resource = dict[str, Any]


def _shown(cloud: Cloud, zone: str, name: str) -> Resource:
    """The API's Disk, with who uses it now."""
    disk = cloud.disks[zone, name]
    link = disk["selfLink"]
    users = [
        url(life.instance.path)
        for life in cloud.lives.values()
        if any(attached["source"] == link for attached in life.instance.body["disks"])
    ]
    return {**disk, **({"users": users} if users else {})}


def _path(cloud: Cloud, zone: str, name: str) -> str:
    return f"projects/{cloud.settings.project}/zones/{zone}/disks/{name}"


def _of_zone(cloud: Cloud, zone: str) -> list[Resource]:
    return [_shown(cloud, *key) for key in cloud.disks if key[0] == zone]


async def get(cloud: Cloud, arguments: Arguments) -> Resource:
    zone, name = arguments["zone"], arguments["disk"]
    if (zone, name) not in cloud.disks:
        raise not_found(_path(cloud, zone, name))
    return _shown(cloud, zone, name)


async def list_(cloud: Cloud, arguments: Arguments) -> Resource:
    zone = (await get_zone(cloud, arguments))["name"]
    path = f"projects/{cloud.settings.project}/zones/{zone}/disks"
    return page("diskList", path, _of_zone(cloud, zone), arguments.query)


async def aggregated_list(cloud: Cloud, arguments: Arguments) -> Resource:
    by_scope = {f"zones/{zone}": _of_zone(cloud, zone) for zone in catalog.zones()}
    path = f"projects/{cloud.settings.project}/aggregated/disks"
    return aggregated("diskAggregatedList", path, "disks", by_scope, arguments.query)


@once
async def delete(cloud: Cloud, arguments: Arguments) -> Resource:
    zone, name = arguments["zone"], arguments["disk"]
    disk = await get(cloud, arguments)
    if disk.get("users"):
        raise ApiError(
            400,
            "resourceInUseByAnotherResource",
            f"The disk resource '{_path(cloud, zone, name)}' is already being used by "
            f"'{disk['users'][0].partition('/v1/')[2]}'",
        )
    operation = cloud.new_operation(
        f"zones/{zone}",
        "delete",
        _path(cloud, zone, name),
        disk["id"],
        user=arguments.user,
        request_id=arguments.query.get("requestId"),
    )

    async def effect() -> None:
        cloud.disks.pop((zone, name), None)

    cloud.carry_out(operation, "disks.delete", (name, f"{zone}/{name}"), effect)
    return operation.resource()


METHODS: dict[str, Method] = {
    "disks.get": get,
    "disks.list": list_,
    "disks.aggregatedList": aggregated_list,
    "disks.delete": delete,
}
