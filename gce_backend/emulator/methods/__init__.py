"""The methods of the API that are emulated, by the ids of the discovery document."""

from __future__ import annotations

from . import (
    bulk,
    catalog,
    disks,
    images,
    instance_changes,
    instance_reads,
    networks,
    operations,
    projects,
)
from .arguments import Method

METHODS: dict[str, Method] = {
    **bulk.METHODS,
    **catalog.METHODS,
    **disks.METHODS,
    **images.METHODS,
    **instance_changes.METHODS,
    **instance_reads.METHODS,
    **networks.METHODS,
    **operations.METHODS,
    **projects.METHODS,
}
