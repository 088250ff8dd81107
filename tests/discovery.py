"""The API's own description of itself, as a JSON schema to hold requests and answers against.

``compute.v1.json`` ships inside google-api-python-client. It allows an empty object and does not
mark unknown fields, so the schema built from it forbids the latter; required fields are up to the
test.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

if TYPE_CHECKING:
    from gce_backend.emulator.calls import Call


@functools.cache
def discovery() -> dict[str, Any]:
    documents = resources.files("googleapiclient") / "discovery_cache" / "documents"
    return json.loads((documents / "compute.v1.json").read_text(encoding="utf-8"))


@functools.cache
def methods() -> dict[str, dict[str, Any]]:
    """``instances.insert`` -> the document's entry."""
    found: dict[str, dict[str, Any]] = {}

    def walk(node: dict[str, Any]) -> None:
        for resource in node.get("resources", {}).values():
            for method in resource.get("methods", {}).values():
                found[method["id"].removeprefix("compute.")] = method
            walk(resource)

    walk(discovery())
    return found


def check_answers(calls: Iterable[Call]) -> None:
    """Every answer of Compute Engine is what the document says the method answers."""
    for call in calls:
        if call.service == "compute" and call.status == 200:
            schema = methods()[call.name].get("response", {}).get("$ref")
            assert schema is None or problems(schema, call.answer) == [], call


def problems(schema: str, value: object) -> list[str]:
    errors = validator_of(schema).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in errors]


@functools.cache
def validator_of(name: str) -> Draft202012Validator:
    """A validator for one resource, e.g. ``Instance``, built once: the document is 5 MB."""
    definitions: dict[str, Any] = {}
    todo = [name]
    while todo:
        current = todo.pop()
        if current not in definitions:
            definitions[current] = _converted(discovery()["schemas"][current])
            todo += _references(definitions[current])
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions})


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for item in node for name in _references(item)]
    if not isinstance(node, dict):
        return []
    if isinstance(node.get("$ref"), str):
        return [node["$ref"].rpartition("/")[2]]
    return [name for value in node.values() for name in _references(value)]


def _converted(node: Any) -> Any:
    if isinstance(node, list):
        return [_converted(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return {"$ref": f"#/$defs/{node['$ref']}"}
    schema: dict[str, Any] = {}
    if "type" in node and node["type"] != "any":
        schema["type"] = node["type"]
    if "enum" in node:
        schema["enum"] = node["enum"]
    if node.get("format") in ("int64", "uint64") and node.get("type") == "string":
        schema["pattern"] = "^-?[0-9]+$"
    if "items" in node:
        schema["items"] = _converted(node["items"])
    if "properties" in node:
        schema["properties"] = {k: _converted(v) for k, v in node["properties"].items()}
        schema["additionalProperties"] = False
    if "additionalProperties" in node:
        schema["additionalProperties"] = _converted(node["additionalProperties"])
    return schema
