"""Artifact locations: ``gs://B/p`` in the store is ``mlflow-artifacts:/B/p`` for the trainer.

So the trainer hands its files to the relay, needs no cloud credentials, and the store never sees
a location that only this instance understands.
"""

from __future__ import annotations

from .errors import RelayError, invalid

# https://cloud.google.com/storage/docs/objects#naming
_MAX_NAME_BYTES = 1024


def name_fault(name: str) -> str:
    """Why Cloud Storage refuses an object of that name for good; "" when it takes it."""
    if "\r" in name or "\n" in name:
        return "its name would hold a line break, which Cloud Storage does not take"
    if (size := len(name.encode())) > _MAX_NAME_BYTES:
        return f"its name would have {size} bytes; Cloud Storage takes {_MAX_NAME_BYTES}"
    return ""


class Locations:
    """The two names of everything below ``root``, a ``gs://`` URI (the experiment's location)."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.bucket, _, self.prefix = self.root.removeprefix("gs://").partition("/")
        self._gs = f"gs://{self.bucket}/"
        self._proxied = f"mlflow-artifacts:/{self.bucket}/"

    def for_trainer(self, uri: str) -> str:
        return self._proxied + uri[len(self._gs) :] if uri.startswith(self._gs) else uri

    def for_store(self, text: bytes) -> bytes:
        """Every proxied location in ``text`` (JSON, or an MLmodel file) by its true name."""
        return text.replace(self._proxied.encode(), self._gs.encode())

    def object_name(self, path: str) -> str:
        """Object for a path below ``mlflow-artifacts/artifacts/``; RelayError outside of root."""
        bucket, _, name = path.strip("/").partition("/")
        parts = name.split("/")
        if ".." in parts or "." in parts or "" in parts[:-1] or "\\" in name or "\0" in name:
            raise invalid(f"Invalid artifact path: '{path}'")
        if fault := name_fault(name):
            raise invalid(f"Invalid artifact path: '{path[-200:]}': {fault}")
        if bucket != self.bucket or not f"{name}/".startswith(f"{self.prefix}/"):
            raise RelayError(
                "PERMISSION_DENIED",
                f"artifact path '{path}': the relay on the instance serves what lies under "
                f"{self.root}, the location of this run's experiment.",
            )
        return name
