"""What Google's discovery document says of Compute Engine v1: its methods and request bodies.

The document itself (4.9 MB) ships in the package ``google-api-python-client``, which running the
emulator does not need: :func:`extract` keeps the path of every method, so that an unknown one can
be named in the 501, and the schemas of the request bodies that are accepted. The result is
``data/discovery.json``; ``python -m gce_backend.emulator.discovery DOCUMENT`` writes it anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

# The request bodies the emulator accepts; everything they refer to comes along.
REQUEST_SCHEMAS = (
    "Instance",
    "BulkInsertInstanceResource",
    "Metadata",
    "InstancesSetLabelsRequest",
    "TestPermissionsRequest",
)
_KEPT = ("type", "format", "enum", "$ref", "items", "properties", "additionalProperties")


@cache
def document() -> dict[str, Any]:
    """``{"methods": [[id, HTTP method, path], …], "schemas": {name: schema}}``."""
    loaded: dict[str, Any] = json.loads((DATA / "discovery.json").read_text())
    return loaded


def extract(discovery: dict[str, Any]) -> dict[str, Any]:
    """The part of the whole discovery document that :func:`document` gives."""
    schemas: dict[str, Any] = {}
    for name in REQUEST_SCHEMAS:
        _collect(discovery["schemas"], name, schemas)
    methods = [
        [method["id"].removeprefix("compute."), method["httpMethod"], method["flatPath"]]
        for method in _methods(discovery)
    ]
    return {"revision": discovery["revision"], "methods": sorted(methods), "schemas": schemas}


def _methods(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in node.get("resources", {}).values():
        yield from resource.get("methods", {}).values()
        yield from _methods(resource)


def _collect(schemas: dict[str, Any], name: str, into: dict[str, Any]) -> None:
    if name in into:
        return
    into[name] = _reduced(schemas[name])
    for reference in _references(into[name]):
        _collect(schemas, reference, into)


def _reduced(schema: dict[str, Any]) -> dict[str, Any]:
    reduced = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in reduced:
        reduced["properties"] = {
            name: _reduced(value) for name, value in sorted(reduced["properties"].items())
        }
    for key in ("items", "additionalProperties"):
        if key in reduced:
            reduced[key] = _reduced(reduced[key])
    return reduced


def _references(schema: dict[str, Any]) -> Iterator[str]:
    for key, value in schema.items():
        if key == "$ref":
            yield value
        elif key == "properties":
            for each in value.values():
                yield from _references(each)
        elif key in ("items", "additionalProperties"):
            yield from _references(value)


if __name__ == "__main__":
    whole = json.loads(Path(sys.argv[1]).read_text())
    text = json.dumps(extract(whole), indent=0, sort_keys=True)
    (DATA / "discovery.json").write_text(text + "\n")
