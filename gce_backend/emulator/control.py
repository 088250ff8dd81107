"""The control endpoint, beside the API and no part of it: ``/_emulator/…`` on the compute port.

::

    GET    /_emulator/faults                  what is injected
    POST   /_emulator/faults                  inject one: the fields of Fault as JSON
    DELETE /_emulator/faults                  clear them
    GET    /_emulator/calls                   the record
    POST   /_emulator/clock   {"advance": s}  move the clock
    POST   /_emulator/secrets {"NAME": "value"}  add versions to Secret Manager
    POST   /_emulator/instances/NAME/preempt | power-off
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from aiohttp import web

from .cloud import Cloud
from .faults import Fault
from .life import Life
from .secret_manager import SecretManager


class Control:
    """Serves the control endpoint over one cloud."""

    def __init__(self, cloud: Cloud, secrets: SecretManager) -> None:
        self._cloud = cloud
        self._secrets = secrets

    async def handle(self, request: web.BaseRequest) -> web.Response:
        try:
            answer = await self._answer(request)
        except (TypeError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        if answer is None:
            return web.json_response({"error": f"unknown: {request.path}"}, status=404)
        return web.json_response(answer)

    async def _answer(self, request: web.BaseRequest) -> Any:
        match request.method, request.path.removeprefix("/_emulator/").split("/"):
            case "GET", ["faults"]:
                return [fault.to_json() for fault in self._cloud.faults.pending()]
            case "POST", ["faults"]:
                self._cloud.inject(Fault(**await _json(request)))
                return {}
            case "DELETE", ["faults"]:
                self._cloud.faults.clear()
                return {}
            case "GET", ["calls"]:
                return [asdict(call) for call in self._cloud.calls]
            case "POST", ["clock"]:
                self._cloud.clock.advance(float((await _json(request)).get("advance", 0)))
                return {"now": self._cloud.clock.now()}
            case "POST", ["secrets"]:
                for name, value in (await _json(request)).items():
                    self._secrets.put(name, str(value))
                return {}
            case "POST", ["instances", name, "preempt"]:
                await find_by_name(self._cloud, name).preempt()
                return {}
            case "POST", ["instances", name, "power-off"]:
                await find_by_name(self._cloud, name).power_off()
                return {}
            case _:
                return None


def find_by_name(cloud: Cloud, name: str) -> Life:
    """The one instance of that name, in whatever zone.

    Raises:
        ValueError: none, or one in several zones.
    """
    found = [life for life in cloud.lives.values() if life.instance.name == name]
    if len(found) != 1:
        raise ValueError(f"{len(found)} instances are named {name!r}")
    return found[0]


async def _json(request: web.BaseRequest) -> dict[str, Any]:
    body = json.loads(await request.content.read())
    if not isinstance(body, dict):
        raise ValueError("the body is no JSON object")
    return body
