"""What a request to Cloud Storage's JSON API is: its method's name, bucket and object."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from .errors import not_emulated

UNKNOWN = "storage.unknown"
_VERBS = {"GET": "get", "POST": "insert", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class StorageCall:
    """``name``: as ``storage.objects.insert``; ``object`` decoded, empty where there is none.

    ``source``: bucket and object that a copy is made of.
    """

    name: str
    bucket: str = ""
    object: str = ""
    is_upload: bool = False
    source: tuple[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """How a fault may call it."""
        return (self.bucket, f"{self.bucket}/{self.object}") if self.object else (self.bucket,)


def classify(method: str, path: str) -> StorageCall:
    """``path``: as sent, percent-encoded, for an object's name may hold encoded slashes."""
    is_upload = path.startswith(("/upload/", "/resumable/upload/"))
    for prefix in ("/resumable", "/upload", "/download"):
        path = path.removeprefix(prefix)
    parts = [unquote(part) for part in path.removeprefix("/storage/v1/").split("/") if part]
    match parts:
        case ["b"]:
            return StorageCall(f"storage.buckets.{'list' if method == 'GET' else 'insert'}")
        case ["b", bucket]:
            return StorageCall(f"storage.buckets.{_VERBS.get(method, 'get')}", bucket)
        case ["b", bucket, "storageLayout"]:
            return StorageCall("storage.buckets.getStorageLayout", bucket)
        case ["b", bucket, "o"]:
            verb = "list" if method == "GET" else "insert"
            return StorageCall(f"storage.objects.{verb}", bucket, is_upload=is_upload)
        case ["b", bucket, "o", name]:
            return StorageCall(f"storage.objects.{_VERBS.get(method, 'get')}", bucket, name)
        case ["b", bucket, "o", name, "compose"]:
            return StorageCall("storage.objects.compose", bucket, name)
        case ["b", where, "o", what, ("copyTo" | "rewriteTo") as verb, "b", bucket, "o", name]:
            kind = "copy" if verb == "copyTo" else "rewrite"
            return StorageCall(f"storage.objects.{kind}", bucket, name, source=(where, what))
        case _:
            return StorageCall(UNKNOWN)


def check_path(path: str) -> None:
    """Objects are files below their bucket's directory, so no name may lead out of it.

    Args:
        path: a name or a request's path, decoded; Cloud Storage itself takes almost any name.

    Raises:
        ApiError: 501.
    """
    if not {".", ".."}.isdisjoint(path.split("/")):
        raise not_emulated(f"a name with '.' or '..' between slashes ({path})")
