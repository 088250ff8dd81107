"""The project: get, setCommonInstanceMetadata."""

from __future__ import annotations

from typing import Any

from .. import schema
from ..cloud import PROJECT_NUMBER, Cloud
from ..errors import check_current
from ..inserts import DEFAULT_ACCOUNT
from ..names import check_metadata, url
from .arguments import Arguments, Method
from .requests import once


async def get(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
    name = cloud.settings.project
    return {
        "kind": "compute#project",
        "id": PROJECT_NUMBER,
        "name": name,
        "creationTimestamp": "2026-01-01T00:00:00.000-08:00",
        "commonInstanceMetadata": cloud.project_metadata.resource(),
        "defaultServiceAccount": DEFAULT_ACCOUNT,
        "defaultNetworkTier": "PREMIUM",
        "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS",
        "quotas": [
            {"metric": "GPUS_ALL_REGIONS", "limit": 4.0, "usage": 0.0},
            {"metric": "NETWORKS", "limit": 5.0, "usage": 1.0},
        ],
        "selfLink": url(f"projects/{name}"),
    }


@once
async def set_common_instance_metadata(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
    body = schema.check("Metadata", arguments.body)
    metadata = cloud.project_metadata
    supplied = body.get("fingerprint")
    if supplied:
        check_current("metadata", supplied, metadata.fingerprint)
    items = body.get("items", [])
    check_metadata(items)
    project = cloud.settings.project
    operation = cloud.new_operation(
        "global",
        "compute.projects.setCommonInstanceMetadata",
        f"projects/{project}",
        PROJECT_NUMBER,
        user=arguments.user,
        request_id=arguments.query.get("requestId"),
    )

    async def effect() -> None:
        if supplied:
            check_current("metadata", supplied, metadata.fingerprint)
        metadata.items = {item["key"]: item.get("value", "") for item in items}
        for life in list(cloud.lives.values()):
            await life.metadata_changed()

    cloud.carry_out(operation, "projects.setCommonInstanceMetadata", (project,), effect)
    return operation.resource()


METHODS: dict[str, Method] = {
    "projects.get": get,
    "projects.setCommonInstanceMetadata": set_common_instance_metadata,
}
