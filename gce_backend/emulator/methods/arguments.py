"""What a method of the API is called with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..cloud import Cloud
from ..operations import ACCOUNT


@dataclass(frozen=True)
class Arguments:
    """Path parameters (also by ``arguments["zone"]``), query, JSON body; ``user``: who calls."""

    params: Mapping[str, str]
    query: Mapping[str, str]
    body: dict[str, Any] | None = None
    user: str = ACCOUNT

    def __getitem__(self, name: str) -> str:
        return self.params[name]


Method = Callable[[Cloud, Arguments], Awaitable[dict[str, Any]]]
