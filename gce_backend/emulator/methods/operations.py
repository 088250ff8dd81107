"""Operations of zones, of regions, and global ones: get, list, wait, delete."""

from __future__ import annotations

from typing import Any

from ..cloud import Cloud
from ..errors import ApiError, not_found
from ..lists import Order, aggregated, page
from ..operations import Operation
from .arguments import Arguments, Method

_WAIT_SECONDS = 120.0  # "waits for no more than the 2 minutes", zoneOperations.wait
# By the times in their names, whatever these begin with.
_NEWEST_FIRST = Order(lambda operation: str(operation["name"]).partition("-")[2], descending=True)

Resource = dict[str, Any]


def _scope(arguments: Arguments) -> str:
    for place in ("zone", "region"):
        if place in arguments.params:
            return f"{place}s/{arguments[place]}"
    return "global"


def _find(cloud: Cloud, arguments: Arguments) -> Operation:
    scope, name = _scope(arguments), arguments["operation"]
    operation = cloud.operations.get(name)
    if operation is None:
        # Clients may name it by its numeric id as well.
        operation = next((each for each in cloud.operations.values() if each.id == name), None)
    if operation is None or operation.scope != scope:
        raise not_found(f"projects/{cloud.settings.project}/{scope}/operations/{name}")
    return operation


async def get(cloud: Cloud, arguments: Arguments) -> Resource:
    return _find(cloud, arguments).resource()


async def wait(cloud: Cloud, arguments: Arguments) -> Resource:
    operation = _find(cloud, arguments)
    await operation.wait(_WAIT_SECONDS)
    return operation.resource()


async def delete(cloud: Cloud, arguments: Arguments) -> Resource:
    """Raises ApiError 400 while it is not done."""
    operation = _find(cloud, arguments)
    if not operation.is_done:
        raise ApiError(400, "resourceNotReady", f"The operation '{operation.name}' is not done")
    del cloud.operations[operation.name]
    return {}


def _of_scope(cloud: Cloud, scope: str) -> list[Resource]:
    return [each.resource() for each in cloud.operations.values() if each.scope == scope]


async def list_(cloud: Cloud, arguments: Arguments) -> Resource:
    scope = _scope(arguments)
    path = f"projects/{cloud.settings.project}/{scope}/operations"
    return page("operationList", path, _of_scope(cloud, scope), arguments.query, _NEWEST_FIRST)


async def aggregated_list(cloud: Cloud, arguments: Arguments) -> Resource:
    scopes = sorted({operation.scope for operation in cloud.operations.values()})
    by_scope = {scope: _of_scope(cloud, scope) for scope in scopes}
    path = f"projects/{cloud.settings.project}/aggregated/operations"
    return aggregated(
        "operationAggregatedList", path, "operations", by_scope, arguments.query, _NEWEST_FIRST
    )


_EACH: dict[str, Method] = {"get": get, "list": list_, "wait": wait, "delete": delete}

METHODS: dict[str, Method] = {
    f"{place}Operations.{name}": method
    for place in ("zone", "region", "global")
    for name, method in _EACH.items()
} | {"globalOperations.aggregatedList": aggregated_list}
