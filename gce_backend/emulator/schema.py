"""Request bodies against the discovery document's schemas: unknown fields, types, enums.

The document says nothing of required fields; those are ``inserts.py``'s business.
"""

from __future__ import annotations

import re
from typing import Any

from .discovery import document
from .errors import ApiError, invalid, invalid_field

_INT64 = re.compile(r"-?\d{1,20}")


def check(schema: str, body: object) -> dict[str, Any]:
    """``body`` itself, when it is a ``schema`` object; nulls are taken as absent fields.

    Raises:
        ApiError: 400 with the field's path and what is wrong.
    """
    if not isinstance(body, dict):
        raise invalid("Required request body is missing or is no JSON object.")
    cleaned: dict[str, Any] = _value({"$ref": schema}, body, "")
    return cleaned


def _object(properties: dict[str, Any], value: dict[str, Any], path: str) -> dict[str, Any]:
    cleaned = {}
    for key, item in value.items():
        where = f"{path}.{key}" if path else key
        if key not in properties:
            raise ApiError(
                400,
                "invalid",
                f'Invalid JSON payload received. Unknown name "{key}"'
                + (f" at '{path}'" if path else "")
                + ": Cannot find field.",
                status="INVALID_ARGUMENT",
            )
        if item is not None:
            cleaned[key] = _value(properties[key], item, where)
    return cleaned


def _value(schema: dict[str, Any], value: Any, path: str) -> Any:
    if "$ref" in schema:
        return _value(document()["schemas"][schema["$ref"]], value, path)
    kind = schema.get("type")
    if kind == "array":
        if not isinstance(value, list):
            raise _mistyped(path, value, "an array")
        return [_value(schema["items"], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if kind == "object":
        if not isinstance(value, dict):
            raise _mistyped(path, value, "an object")
        inner = schema.get("additionalProperties")
        if inner is None:
            return _object(schema.get("properties", {}), value, path)
        return {key: _value(inner, item, f"{path}.{key}") for key, item in value.items()}
    return _scalar(schema, value, path)


def _scalar(schema: dict[str, Any], value: Any, path: str) -> Any:
    kind = schema.get("type")
    if kind == "boolean":
        if not isinstance(value, bool):
            raise _mistyped(path, value, "true or false")
        return value
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _mistyped(path, value, "a number")
        return value
    return _string(schema, value, path) if kind == "string" else value


def _string(schema: dict[str, Any], value: Any, path: str) -> str:
    form = schema.get("format")
    if form in ("int64", "uint64"):
        # The service takes a bare number as well; it answers with strings.
        if isinstance(value, bool) or not _INT64.fullmatch(str(value)):
            raise _mistyped(path, value, "a 64-bit integer in a string")
        return str(value)
    if not isinstance(value, str):
        raise _mistyped(path, value, "a string")
    if "enum" in schema and value not in schema["enum"]:
        raise invalid_field(path, value, f"Allowed are {', '.join(schema['enum'])}.")
    return value


def _mistyped(path: str, value: object, wanted: str) -> ApiError:
    return invalid_field(path, value, f"It must be {wanted}.")
