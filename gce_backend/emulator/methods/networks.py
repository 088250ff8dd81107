"""Networks: the ``default`` one that every project begins with, read only."""

from __future__ import annotations

from typing import Any

from .. import catalog
from ..cloud import Cloud
from ..errors import not_found
from ..lists import page
from ..names import url
from .arguments import Arguments, Method


async def get(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
    project, name = cloud.settings.project, arguments["network"]
    if name != "default":
        raise not_found(f"projects/{project}/global/networks/{name}")
    return _default(project)


async def list_(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
    project = cloud.settings.project
    path = f"projects/{project}/global/networks"
    return page("networkList", path, [_default(project)], arguments.query)


def _default(project: str) -> dict[str, Any]:
    return {
        "kind": "compute#network",
        "id": "5550000000000000001",
        "name": "default",
        "description": "Default network for the project",
        "creationTimestamp": "2026-01-01T00:00:00.000-08:00",
        "autoCreateSubnetworks": True,
        "routingConfig": {"routingMode": "REGIONAL"},
        "selfLink": url(f"projects/{project}/global/networks/default"),
        "subnetworks": [
            url(f"projects/{project}/regions/{region}/subnetworks/default")
            for region in catalog.table()["regions"]
        ],
    }


METHODS: dict[str, Method] = {"networks.get": get, "networks.list": list_}
