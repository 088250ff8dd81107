"""The record of every call that clients and instances made, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Service = Literal["compute", "storage", "secretmanager", "oslogin"]


@dataclass(frozen=True)
class Call:
    """One request and how it was answered.

    Attributes:
        at: unix seconds by the emulator's clock, when the request came in.
        method: HTTP method.
        path: decoded, without the query.
        query: the last value of each parameter.
        body: the request's JSON (compute only).
        status: HTTP status; 0 when the reply was lost, None while the call is being served.
        name: the API's method, for example ``instances.insert`` or ``storage.objects.delete``.
        caller: the instance it came from; empty for a client.
        answer: the JSON it was answered with: by compute, and by storage to a finished upload.
    """

    at: float
    service: Service
    method: str
    path: str
    query: dict[str, str]
    body: dict[str, Any] | None
    status: int | None
    name: str = ""
    caller: str = ""
    answer: dict[str, Any] | None = None
