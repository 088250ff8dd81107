"""Images: get, getFromFamily, list; of any project that publishes some."""

from __future__ import annotations

from typing import Any

from .. import images
from ..cloud import Cloud
from ..errors import not_found
from ..lists import page
from .arguments import Arguments, Method


async def get(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
    project, name = arguments["project"], arguments["image"]
    image = images.by_name(project, name)
    if image is None:
        raise not_found(f"projects/{project}/global/images/{name}")
    return image.resource()


async def get_from_family(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
    project, family = arguments["project"], arguments["family"]
    image = images.from_family(project, family, legacy=cloud.settings.legacy_images)
    if image is None:
        raise not_found(f"projects/{project}/global/images/family/{family}")
    return image.resource()


async def list_(cloud: Cloud, arguments: Arguments) -> dict[str, Any]:
    project = arguments["project"]
    found = [image.resource() for image in images.images() if image.project == project]
    return page("imageList", f"projects/{project}/global/images", found, arguments.query)


METHODS: dict[str, Method] = {
    "images.get": get,
    "images.getFromFamily": get_from_family,
    "images.list": list_,
}
