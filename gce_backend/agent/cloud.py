"""The endpoints of the cloud that an attempt works with, and who it is there."""

from __future__ import annotations

from dataclasses import dataclass

from .metadata import Identity, MetadataServer
from .storage import Storage


@dataclass(frozen=True)
class Cloud:
    metadata: MetadataServer
    storage: Storage
    identity: Identity
