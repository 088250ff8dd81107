"""Zones, regions, machine types, accelerator types, disk types: read only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import catalog
from ..cloud import Cloud
from ..errors import not_found
from ..lists import aggregated, page
from .arguments import Arguments, Method

Resource = dict[str, Any]
Build = Callable[[str, str, str], Resource | None]  # (project, zone, name)


async def get_zone(cloud: Cloud, arguments: Arguments) -> Resource:
    zone = arguments["zone"]
    if zone not in catalog.zones():
        raise not_found(f"projects/{cloud.settings.project}/zones/{zone}")
    return catalog.zone_resource(cloud.settings.project, zone)


async def list_zones(cloud: Cloud, arguments: Arguments) -> Resource:
    project = cloud.settings.project
    found = [catalog.zone_resource(project, zone) for zone in catalog.zones()]
    return page("zoneList", f"projects/{project}/zones", found, arguments.query)


async def get_region(cloud: Cloud, arguments: Arguments) -> Resource:
    region = arguments["region"]
    if region not in catalog.table()["regions"]:
        raise not_found(f"projects/{cloud.settings.project}/regions/{region}")
    return catalog.region_resource(cloud.settings.project, region, _usage(cloud, region))


async def list_regions(cloud: Cloud, arguments: Arguments) -> Resource:
    project = cloud.settings.project
    found = [
        catalog.region_resource(project, region, _usage(cloud, region))
        for region in catalog.table()["regions"]
    ]
    return page("regionList", f"projects/{project}/regions", found, arguments.query)


def _usage(cloud: Cloud, region: str) -> dict[str, float]:
    """Quota metric -> what the region's instances use."""
    usage = {"CPUS": 0.0, "INSTANCES": 0.0, "DISKS_TOTAL_GB": 0.0, "NVIDIA_T4_GPUS": 0.0}
    for life in cloud.lives.values():
        instance = life.instance
        if catalog.zones()[instance.zone] != region:
            continue
        usage["INSTANCES"] += 1
        usage["CPUS"] += catalog.table()["machineTypes"][instance.machine_type]["cpus"]
        for entry in instance.body.get("guestAccelerators", []):
            if entry["acceleratorType"].endswith("nvidia-tesla-t4"):
                usage["NVIDIA_T4_GPUS"] += entry["acceleratorCount"]
    for (zone, _), disk in cloud.disks.items():
        if catalog.zones()[zone] == region:
            usage["DISKS_TOTAL_GB"] += float(disk["sizeGb"])
    return usage


def _zonal(kind: str, collection: str, parameter: str, build: Build) -> dict[str, Method]:
    """get, list and aggregatedList of a kind of resource the catalogue has per zone."""

    async def get(cloud: Cloud, arguments: Arguments) -> Resource:
        zone, name = arguments["zone"], arguments[parameter]
        found = build(cloud.settings.project, zone, name)
        if found is None:
            raise not_found(f"projects/{cloud.settings.project}/zones/{zone}/{collection}/{name}")
        return found

    async def list_(cloud: Cloud, arguments: Arguments) -> Resource:
        zone = (await get_zone(cloud, arguments))["name"]
        path = f"projects/{cloud.settings.project}/zones/{zone}/{collection}"
        return page(f"{kind}List", path, _all(cloud, zone), arguments.query)

    async def aggregated_list(cloud: Cloud, arguments: Arguments) -> Resource:
        by_scope = {f"zones/{zone}": _all(cloud, zone) for zone in catalog.zones()}
        path = f"projects/{cloud.settings.project}/aggregated/{collection}"
        return aggregated(f"{kind}AggregatedList", path, collection, by_scope, arguments.query)

    def _all(cloud: Cloud, zone: str) -> list[Resource]:
        built = (
            build(cloud.settings.project, zone, name) for name in catalog.offered(collection, zone)
        )
        return [resource for resource in built if resource is not None]

    return {
        f"{collection}.get": get,
        f"{collection}.list": list_,
        f"{collection}.aggregatedList": aggregated_list,
    }


METHODS: dict[str, Method] = {
    "zones.get": get_zone,
    "zones.list": list_zones,
    "regions.get": get_region,
    "regions.list": list_regions,
    **_zonal("machineType", "machineTypes", "machineType", catalog.machine_type_resource),
    **_zonal(
        "acceleratorType",
        "acceleratorTypes",
        "acceleratorType",
        catalog.accelerator_type_resource,
    ),
    **_zonal("diskType", "diskTypes", "diskType", catalog.disk_type_resource),
}
