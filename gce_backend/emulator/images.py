"""Images: which exist, and which Python an instance made from one has.

``python: host`` in ``data/images.json`` is the Python that runs the emulator, with all that is
installed there: a baked image. ``python: empty`` is a fresh virtual environment of the base
interpreter without pip and without packages. Both are stand-ins; no image holds a disk.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .names import fingerprint, tail, url

_CREATED = "2026-04-16T10:00:00.000-07:00"


@dataclass(frozen=True)
class Image:
    project: str
    family: str
    name: str
    disk_size_gb: int
    python: Literal["host", "empty"]
    deprecated: bool = False

    @property
    def path(self) -> str:
        return f"projects/{self.project}/global/images/{self.name}"

    def resource(self) -> dict[str, Any]:
        """The API's Image."""
        identifier = int.from_bytes(self.path.encode()[-7:], "big")
        deprecation = {"deprecated": {"state": "DEPRECATED"}} if self.deprecated else {}
        return {
            "kind": "compute#image",
            "id": str(identifier),
            "name": self.name,
            "family": self.family,
            "description": f"Stand-in for {self.name}",
            "creationTimestamp": _CREATED,
            "status": "READY",
            "sourceType": "RAW",
            "architecture": "X86_64",
            "diskSizeGb": str(self.disk_size_gb),
            "archiveSizeBytes": str(self.disk_size_gb * 10**8),
            "licenses": [url(f"projects/{self.project}/global/licenses/{self.family}")],
            "guestOsFeatures": [{"type": "VIRTIO_SCSI_MULTIQUEUE"}, {"type": "UEFI_COMPATIBLE"}],
            "labelFingerprint": fingerprint({}),
            "selfLink": url(self.path),
            **deprecation,
        }


@cache
def images() -> tuple[Image, ...]:
    rows = json.loads((Path(__file__).parent / "data" / "images.json").read_text())
    return tuple(
        Image(
            project=row["project"],
            family=row["family"],
            name=row["name"],
            disk_size_gb=row["diskSizeGb"],
            python=row["python"],
            deprecated=row.get("deprecated", False),
        )
        for row in rows
    )


def from_family(project: str, family: str, *, legacy: bool = False) -> Image | None:
    """The newest image of a family; a family of deprecated images has none.

    Args:
        legacy: deprecated families resolve too, as they did before they were retired.
    """
    for image in images():
        if (image.project, image.family) == (project, family) and (legacy or not image.deprecated):
            return image
    return None


def by_name(project: str, name: str) -> Image | None:
    for image in images():
        if (image.project, image.name) == (project, name):
            return image
    return None


def resolve(reference: str, *, legacy: bool = False) -> Image | None:
    """The image a ``sourceImage`` names: ``projects/P/global/images/[family/]NAME`` or its URL.

    gcloud names the families of Google's own image projects by ``zones/-/imageFamilyViews/NAME``.
    """
    parts = tail(reference).split("/")
    match parts:
        case ["projects", project, "global", "images", "family", family] | [
            "projects",
            project,
            "zones",
            _,
            "imageFamilyViews",
            family,
        ]:
            return from_family(project, family, legacy=legacy)
        case ["projects", project, "global", "images", name]:
            return by_name(project, name)
        case _:
            return None
