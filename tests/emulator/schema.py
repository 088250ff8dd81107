"""Google's own discovery document as a check of what the emulator answers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import googleapiclient
from jsonschema import Draft202012Validator


@cache
def discovery() -> dict[str, Any]:
    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    return json.loads((folder / "compute.v1.json").read_text())


@cache
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


def _converted(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{schema['$ref']}"}
    kind = schema.get("type", "any")
    if kind == "any":
        return {}
    if kind == "object":
        extra = schema.get("additionalProperties")
        properties = schema.get("properties", {})
        return {
            "type": "object",
            "properties": {name: _converted(value) for name, value in properties.items()},
            "additionalProperties": _converted(extra) if extra else False,
        }
    if kind == "array":
        return {"type": "array", "items": _converted(schema["items"])}
    converted: dict[str, Any] = {"type": kind}
    if kind == "string" and schema.get("format") in ("int64", "uint64"):
        converted["pattern"] = r"^-?\d+$"
    if "enum" in schema:
        converted["enum"] = schema["enum"]
    return converted


@cache
def _definitions() -> dict[str, Any]:
    return {name: _converted(schema) for name, schema in discovery()["schemas"].items()}


@cache
def validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{schema}", "$defs": _definitions()})


def problems(schema: str, value: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(schema).iter_errors(value)]
