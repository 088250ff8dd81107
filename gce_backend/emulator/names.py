"""Names as the API writes and checks them: URLs, resource names, labels, fingerprints."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from typing import Any

from .errors import ApiError, invalid, invalid_field

API = "https://www.googleapis.com/compute/v1/"

_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
# International lower-case letters are allowed in labels; an upper-case letter is not.
_LABEL_KEY = re.compile(r"[^\W\d_A-Z][\w-]{0,62}")
_LABEL_VALUE = re.compile(r"[\w-]{0,63}")
_METADATA_KEY = re.compile(r"[a-zA-Z0-9_-]{1,128}")


def url(path: str) -> str:
    """Full URL of ``projects/…``."""
    return API + path


def tail(reference: str) -> str:
    """``projects/…`` (or ``zones/…``, ``global/…``) of a full or partial URL.

    Clients send URLs of whatever endpoint they were given, so only the tail counts.
    """
    for root in ("projects/", "zones/", "regions/", "global/"):
        if reference.startswith(root):
            return reference
        if (at := reference.find("/" + root)) >= 0:
            return reference[at + 1 :]
    return reference


def last(reference: str) -> str:
    """The resource's own name at the end of a URL."""
    return reference.rstrip("/").rsplit("/", 1)[-1]


def new_id() -> str:
    """A numeric id, unique, of the 19 digits the API's ids have."""
    return str(10**18 + secrets.randbelow(8 * 10**18))


def fingerprint(value: object) -> str:
    """A short base64 digest that changes with ``value``."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return base64.b64encode(digest[:8]).decode()


def check_name(field: str, name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid_field(
            field,
            name,
            "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'",
        )
    return name


def check_labels(labels: dict[str, Any]) -> None:
    if len(labels) > 64:
        raise invalid(f"Too many labels: {len(labels)}. The maximum is 64.")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or key != key.lower():
            raise invalid_field(
                "labels",
                key,
                "Label keys start with a lowercase letter and contain at most 63 lowercase "
                "letters, digits, dashes and underscores.",
            )
        if (
            not isinstance(value, str)
            or not _LABEL_VALUE.fullmatch(value)
            or value != value.lower()
        ):
            raise invalid_field(
                f"labels.{key}",
                value,
                "Label values contain at most 63 lowercase letters, digits, dashes and "
                "underscores.",
            )


def check_metadata(items: list[dict[str, Any]]) -> None:
    """Limits: 128 characters a key, 256 KiB a value, 512 KiB together."""
    keys = [item.get("key") for item in items]
    if len(set(keys)) != len(keys):
        raise invalid_field("metadata.items", "", "Duplicate metadata keys.")
    total = 0
    for item in items:
        key, value = item.get("key"), item.get("value", "")
        if not isinstance(key, str) or not _METADATA_KEY.fullmatch(key):
            raise invalid_field("metadata.items.key", key, "Must match '[a-zA-Z0-9-_]{1,128}'.")
        size = len(str(value).encode())
        if size > 262144:
            raise ApiError(
                413,
                "uploadTooLarge",
                f"Value for field 'resource.metadata.items.value' is too large: maximum size "
                f"262144 character(s); actual size {size}.",
            )
        total += size + len(key)
    if total > 524288:
        raise invalid(f"Metadata is too large: maximum 524288 bytes together; actual {total}.")
