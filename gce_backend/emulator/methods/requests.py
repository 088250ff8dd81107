"""``requestId``: the same request twice takes effect once."""

from __future__ import annotations

import asyncio
import uuid
from functools import wraps
from typing import Any

from ..cloud import Cloud
from ..errors import invalid_field
from ..operations import Operation
from .arguments import Arguments, Method


def once(method: Method) -> Method:
    """A method that, called again with a ``requestId``, gives the first call's operation."""

    @wraps(method)
    async def wrapped(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
        given = arguments.query.get("requestId")
        if given is None:
            return await method(cloud, arguments)
        try:
            identifier = uuid.UUID(given)
        except ValueError:
            identifier = uuid.UUID(int=0)
        if identifier.int == 0:
            raise invalid_field("requestId", given, "Must be a valid UUID other than zero.")
        key = (method.__qualname__ + repr(sorted(arguments.params.items())), given)
        if key not in cloud.requests:
            # A task, at once: the same request may come again before this one is through.
            cloud.requests[key] = asyncio.create_task(_operation(cloud, method, arguments))
        try:
            operation = await asyncio.shield(cloud.requests[key])
        except Exception:
            cloud.requests.pop(key, None)  # it had no effect, so it may be made again
            raise
        return operation.resource()

    return wrapped


async def _operation(cloud: Cloud, method: Method, arguments: Arguments) -> Operation:
    answer = await method(cloud, arguments)
    return cloud.operations[answer["name"]]
