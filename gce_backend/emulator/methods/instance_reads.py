"""Instances, read: get, list, aggregatedList, serial port, guest attributes, permissions."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from .. import catalog, schema
from ..cloud import Cloud
from ..errors import ApiError, invalid_field, not_found, not_ready
from ..instances import Status
from ..life import Life
from ..lists import aggregated, page
from ..names import url
from .arguments import Arguments, Method
from .catalog import get_zone

Resource = dict[str, Any]

_SERIAL_BYTES = 1024 * 1024  # all that is kept


def find(cloud: Cloud, arguments: Arguments) -> Life:
    """The instance a request names.

    Raises:
        ApiError: 404.
    """
    zone = arguments["zone"]
    name = arguments.params.get("instance") or arguments["resource"]
    life = cloud.lives.get((zone, name))
    if life is None and name.isdigit():
        life = next((each for each in cloud.lives.values() if each.instance.id == name), None)
    if life is None:
        raise not_found(f"projects/{cloud.settings.project}/zones/{zone}/instances/{name}")
    return life


async def get(cloud: Cloud, arguments: Arguments) -> Resource:
    return find(cloud, arguments).instance.resource()


async def list_(cloud: Cloud, arguments: Arguments) -> Resource:
    zone = (await get_zone(cloud, arguments))["name"]
    found = [life.instance.resource() for (where, _), life in cloud.lives.items() if where == zone]
    path = f"projects/{cloud.settings.project}/zones/{zone}/instances"
    return page("instanceList", path, found, arguments.query)


async def aggregated_list(cloud: Cloud, arguments: Arguments) -> Resource:
    by_scope: dict[str, list[Resource]] = {f"zones/{zone}": [] for zone in catalog.zones()}
    for (zone, _), life in cloud.lives.items():
        by_scope[f"zones/{zone}"].append(life.instance.resource())
    path = f"projects/{cloud.settings.project}/aggregated/instances"
    return aggregated("instanceAggregatedList", path, "instances", by_scope, arguments.query)


async def get_serial_port_output(cloud: Cloud, arguments: Arguments) -> Resource:
    life = find(cloud, arguments)
    port = arguments.query.get("port", "1")
    if port not in ("1", "2", "3", "4"):
        raise invalid_field("port", port, "Must be between 1 and 4.")
    asked = arguments.query.get("start", "0")
    if not re.fullmatch("-?[0-9]{1,19}", asked):
        raise invalid_field("start", asked, "Must be a 64-bit integer.")
    start, contents = 0, b""
    if port == "1":
        with contextlib.suppress(FileNotFoundError):  # before the boot
            start, contents = _serial(life.machine.serial_file, int(asked))
    return {
        "kind": "compute#serialPortOutput",
        "selfLink": url(f"{life.instance.path}/serialPort"),
        "contents": contents.decode(errors="replace"),
        "start": str(start),
        "next": str(start + len(contents)),
    }


def _serial(file: Path, asked: int) -> tuple[int, bytes]:
    """(position, output from there); the oldest is kept no longer than the buffer holds.

    Args:
        asked: the position wanted; a negative one counts from the end.
    """
    with file.open("rb") as output:
        size = output.seek(0, os.SEEK_END)
        start = min(size, max(asked if asked >= 0 else size + asked, size - _SERIAL_BYTES, 0))
        output.seek(start)
        return start, output.read(size - start)


async def get_guest_attributes(cloud: Cloud, arguments: Arguments) -> Resource:
    life = find(cloud, arguments)
    if not life.guest_attributes_enabled:
        raise ApiError(
            412,
            "conditionNotMet",
            "Guest attributes are not enabled: set enable-guest-attributes=TRUE in the metadata.",
        )
    if life.instance.status is not Status.RUNNING:
        raise not_ready(life.instance.path)
    query = arguments.query.get("variableKey") or arguments.query.get("queryPath", "")
    namespace, _, key = query.partition("/")
    items = [
        {"namespace": space, "key": name, "value": value}
        for (space, name), value in sorted(life.instance.guest_attributes.items())
        if namespace in ("", space) and key in ("", name)
    ]
    if not items:
        # The wording gcloud looks for while host keys are not published yet.
        raise ApiError(
            404,
            "notFound",
            f"The resource '{query}' of type 'Guest Attribute' was not found.",
        )
    answer: Resource = {
        "kind": "compute#guestAttributes",
        "queryPath": query,
        "selfLink": url(f"{life.instance.path}/getGuestAttributes?queryPath={query}"),
        "queryValue": {"items": items},
    }
    if key:
        answer["variableKey"], answer["variableValue"] = query, items[0]["value"]
    return answer


async def test_iam_permissions(cloud: Cloud, arguments: Arguments) -> Resource:
    """All that is asked for: there are no roles here."""
    find(cloud, arguments)
    body = schema.check("TestPermissionsRequest", arguments.body)
    return {"permissions": body.get("permissions", [])}


METHODS: dict[str, Method] = {
    "instances.get": get,
    "instances.list": list_,
    "instances.aggregatedList": aggregated_list,
    "instances.getSerialPortOutput": get_serial_port_output,
    "instances.getGuestAttributes": get_guest_attributes,
    "instances.testIamPermissions": test_iam_permissions,
}
