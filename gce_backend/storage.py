"""Cloud Storage: objects put once, pieces followed in order, results proven.

What a run leaves in the bucket is named by :class:`gce_backend.agent.paths.RunPaths`; what is in
those objects is the business of whoever writes them. The official client does the talking, to the
real cloud or to whatever ``STORAGE_EMULATOR_HOST`` names. Every failure leaves here as a
:class:`~gce_backend.errors.StorageError` (``transient`` set where trying again may help).
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from gce_backend.errors import ConfigError, StorageError
from gce_backend.storage_errors import check_bucket_name, check_emulator_host, translated
from gce_backend.urls import stopped_emulator

if TYPE_CHECKING:
    from google.cloud.storage import Blob

    from gce_backend.agent.paths import RunPaths

# One multipart request up to this size, resumable above (the client library's own limit); also
# the piece size of a resumable upload: the library's 100 MiB runs into its timeout of 60 s on a
# line slower than 14 Mbit/s.
SINGLE_REQUEST_BYTES = 8 * 1024 * 1024
# The client retries 408, 429, 5xx and lost connections by itself, 1 s doubling, for this long.
RETRY_SECONDS = 60.0
_READS_AT_ONCE = 8
# Names in the bucket are grouped by the run (32 hex) or logged model (m-32 hex) they lie under.
_OWNER = re.compile(r"(?:m-)?[0-9a-f]{32}")

# Inside Storage the name `list` is the method, so its annotations use these.
Lines: TypeAlias = list[str]
Pieces: TypeAlias = list[tuple[int, bytes]]
Segments: TypeAlias = list[tuple[int, list[dict[str, Any]]]]


@dataclass(frozen=True)
class ObjectInfo:
    """One object as the bucket lists it; ``md5`` in hex (None on composed objects)."""

    name: str
    size: int
    crc32c: str
    md5: str | None
    generation: str


def parse_uri(uri: str) -> tuple[str, str]:
    """Split ``gs://bucket/path`` into bucket and path; the path may be empty.

    Raises:
        ConfigError: it is not a ``gs://`` URI with a bucket.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, path = rest.partition("/")
    if scheme != "gs" or not separator or not bucket:
        raise ConfigError(f"{uri!r} is not a Cloud Storage location; it must be gs://BUCKET/PATH")
    return bucket, path


class Storage:
    """One bucket.

    Args:
        bucket: its name, without ``gs://``.
        project: the Google Cloud project for the commands that error messages suggest, and for
            the client; None leaves it to the credentials.
        retry_seconds: how long one call is repeated while the service does not answer.

    Raises:
        ConfigError: no bucket can be called so; or ``STORAGE_EMULATOR_HOST`` is no URL, or plain
            http to another machine.
        StorageError: there are no credentials.
    """

    def __init__(
        self, bucket: str, *, project: str | None = None, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        check_bucket_name(bucket)
        check_emulator_host(os.environ.get("STORAGE_EMULATOR_HOST"))
        # Without it the client asks for the bucket's metadata in the background, which needs a
        # permission (storage.buckets.get) that nothing else here needs.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY

        self.bucket = bucket
        self.project = project
        self._retry = DEFAULT_RETRY.with_timeout(retry_seconds).with_predicate(
            lambda error: DEFAULT_RETRY._predicate(error) and not stopped_emulator(error)
        )
        with translated(f"cannot open gs://{bucket}", self):
            self._client = (
                storage.Client(project=project) if project is not None else storage.Client()
            )
        self._bucket = self._client.bucket(bucket)

    def in_bucket(self, bucket: str) -> Storage:
        """The same account's view of another bucket (this one, when it is the same)."""
        if bucket == self.bucket:
            return self
        other = object.__new__(Storage)
        other.__dict__.update(self.__dict__)
        other.bucket = bucket
        other._bucket = self._client.bucket(bucket)
        return other

    def uri(self, name: str) -> str:
        return f"gs://{self.bucket}/{name}"

    # ------------------------------------------------------------------ before a run

    def check(self, prefix: str = "mlflow-gce", *, location: str = "europe-west1") -> None:
        """Prove that the bucket exists and that we may write, list, read and delete in it.

        It does so with a small object under ``prefix``: asking for permissions
        (``testIamPermissions``) would not see a retention policy or a soft limit.

        Args:
            location: where the command suggested for a missing bucket creates it.

        Raises:
            StorageError: naming the bucket, what came back, and the command that helps.
        """
        from google.api_core.exceptions import NotFound

        name = f"{prefix}/probe-{uuid.uuid4().hex}"
        with translated(f"cannot use bucket {self.bucket!r}", self, location=location):
            blob = self._bucket.blob(name)
            # Without a precondition: a retry after a lost reply meets our own object.
            blob.upload_from_string(b"probe", retry=self._retry)
            found = next(iter(self._listed(name)), None)
            with contextlib.suppress(NotFound):  # the same, of the delete
                blob.delete(retry=self._retry)
        if found is None:
            raise StorageError(
                f"bucket {self.bucket!r} took an object and did not list it; nothing was started"
            )

    def create(self, location: str) -> bool:
        """Create the bucket, with uniform access.

        Returns:
            False where it exists already, and we may write, list, read and delete in it.

        Raises:
            StorageError: it was not created; or it is somebody else's, as every name in the world
                may be.
        """
        from google.api_core.exceptions import Conflict

        with translated(f"cannot create bucket {self.bucket!r}", self, location=location):
            bucket = self._client.bucket(self.bucket)
            bucket.iam_configuration.uniform_bucket_level_access_enabled = True
            try:
                self._client.create_bucket(bucket, location=location, retry=self._retry)
                return True
            except Conflict:
                pass
        try:
            self.check()
        except StorageError as error:
            raise StorageError(
                f"bucket {self.bucket!r} exists already, in your project or in somebody else's, "
                f"whose name you cannot have then: {error}"
            ) from error
        return False

    def location(self) -> str:
        """Where the bucket is: a region, or a multi-region such as ``EU``.

        It takes storage.buckets.get, which nothing else here needs.
        """
        with translated(f"cannot look up bucket {self.bucket!r}", self):
            bucket = self._client.get_bucket(self.bucket, retry=self._retry)
            return str(bucket.location)

    # ------------------------------------------------------------------ objects

    def put_once(self, name: str, source: Path | bytes, *, content_type: str | None = None) -> bool:
        """Create the object unless it exists.

        Returns:
            True if this call created it, False if it was there with the same content.

        Raises:
            StorageError: the object exists with different content, or the upload failed.
        """
        from google.api_core.exceptions import PreconditionFailed

        if isinstance(source, Path) and self._same_content(name, source):
            return False  # content-addressed archives: do not send 100 MB to hear 412
        # The library repeats a POST whose reply was lost, and then meets its own object: the
        # mark tells "ours" from "somebody else's".
        mark = uuid.uuid4().hex
        with translated(f"cannot write {self.uri(name)}", self):
            blob = self._bucket.blob(name)
            blob.metadata = {"mlflow-gce-put": mark}
            try:
                self._upload(blob, source, content_type, if_generation_match=0)
                return True
            except PreconditionFailed:
                existing = self._bucket.get_blob(name, retry=self._retry)
        if existing is not None and (existing.metadata or {}).get("mlflow-gce-put") == mark:
            return True
        if existing is not None and _content(source) == (existing.size, existing.crc32c):
            return False
        raise StorageError(
            f"cannot write {self.uri(name)}: it exists with different content "
            f"({'deleted meanwhile' if existing is None else f'{existing.size} bytes'}), and is "
            "written only once. It was left as it is. "
            f"Look at it with: gcloud storage cat {self.uri(name)}"
        )

    def put(self, name: str, data: bytes, *, content_type: str | None = None) -> ObjectInfo:
        """Create or replace the object. One name takes about one write a second."""
        with translated(f"cannot write {self.uri(name)}", self):
            blob = self._bucket.blob(name)
            self._upload(blob, data, content_type)
            return _info(blob)

    def put_if(self, name: str, data: bytes, generation: str) -> str | None:
        """Create or replace the object if its generation is the given one ("0": there is none).

        Returns:
            The new generation, or None when the object is another one by now.
        """
        from google.api_core.exceptions import PreconditionFailed

        with translated(f"cannot write {self.uri(name)}", self):
            blob = self._bucket.blob(name)
            try:
                self._upload(blob, data, None, if_generation_match=int(generation))
            except PreconditionFailed:
                existing = self._bucket.get_blob(name, retry=self._retry)
                # Ours, when the library repeated a request whose reply was lost.
                if existing is None or _content(data) != (existing.size, existing.crc32c):
                    return None
                return str(existing.generation)
            return str(blob.generation)

    def delete_if(self, name: str, generation: str) -> None:
        """Delete the object if its generation is the given one; leave another one alone."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with translated(f"cannot delete {self.uri(name)}", self):
            try:
                self._bucket.blob(name).delete(
                    if_generation_match=int(generation), retry=self._retry
                )
            except (NotFound, PreconditionFailed):
                return

    def put_json(self, name: str, value: Any) -> ObjectInfo:
        """Write ``value`` as JSON, replacing what is there."""
        data = json.dumps(value, indent=1).encode()
        return self.put(name, data, content_type="application/json")

    def read(self, name: str) -> bytes | None:
        """The object's content, or None if there is no such object."""
        from google.api_core.exceptions import NotFound

        with translated(f"cannot read {self.uri(name)}", self):
            try:
                return bytes(self._bucket.blob(name).download_as_bytes(retry=self._retry))
            except NotFound:
                return None

    def read_into(self, name: str, file: BinaryIO) -> bool:
        """Append the object's content to ``file``, a block at a time; False if there is none."""
        from google.api_core.exceptions import NotFound

        with translated(f"cannot read {self.uri(name)}", self):
            try:
                self._bucket.blob(name).download_to_file(file, retry=self._retry)
            except NotFound:
                return False
        return True

    def read_json(self, name: str) -> Any:
        """The object's content parsed as JSON, or None if there is no such object."""
        data = self.read(name)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(f"{self.uri(name)} is not JSON: {error}") from error

    def exists(self, name: str) -> bool:
        return self.info(name) is not None

    def info(self, name: str) -> ObjectInfo | None:
        """Size and checksums of one object, or None if there is no such object."""
        with translated(f"cannot look up {self.uri(name)}", self):
            blob = self._bucket.get_blob(name, retry=self._retry)
        return None if blob is None else _info(blob)

    def copy(self, source: str, target: str) -> ObjectInfo:
        """Copy within the bucket, replacing ``target``; no byte travels through here."""
        with translated(f"cannot copy {self.uri(source)} to {self.uri(target)}", self):
            blob = self._bucket.blob(target)
            original = self._bucket.blob(source)
            token, _, _ = blob.rewrite(original, retry=self._retry)
            while token is not None:  # large objects are copied in several calls
                token, _, _ = blob.rewrite(original, token=token, retry=self._retry)
            return _info(blob)

    def delete(self, name: str) -> None:
        """Delete the object; one that does not exist is deleted already."""
        from google.api_core.exceptions import NotFound

        with translated(f"cannot delete {self.uri(name)}", self):
            try:
                self._bucket.blob(name).delete(retry=self._retry)
            except NotFound:
                return

    def list(self, prefix: str, after: str | None = None) -> Iterator[ObjectInfo]:
        """The objects whose names start with ``prefix``, in order, those after ``after`` only."""
        with translated(f"cannot list {self.uri(prefix)}*", self):
            yield from self._listed(prefix, after)

    # ------------------------------------------------------------------ what a run leaves

    def verify(self, manifest: dict[str, Any]) -> Lines:
        """Hold the bucket against a manifest (``manifest.json``, written by the agent).

        Lists what lies under the manifest's runs and models instead of asking for every object.

        Returns:
            One line for each object that is missing or differs; none means proven.
        """
        groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for entry in manifest["objects"]:
            group = groups.setdefault((entry["bucket"], _owner_prefix(entry["name"])), {})
            group[entry["name"]] = entry
        lines: Lines = []
        for (bucket, prefix), expected in sorted(groups.items()):
            found = {
                info.name: info
                for info in self.in_bucket(bucket).list(prefix)
                if info.name in expected
            }
            for name, entry in sorted(expected.items()):
                difference = _difference(entry, found.get(name))
                if difference:
                    lines.append(f"gs://{bucket}/{name}: {difference}")
        return lines

    def read_log(self, paths: RunPaths, after_number: int, limit: int | None = None) -> Pieces:
        """The pieces of the run's log after ``after_number``, as (number, bytes).

        Pieces may arrive out of order: reading stops before the first one that is not there yet.

        Args:
            limit: at most so many pieces, to bound memory; None reads all there are.
        """
        return self._numbered(paths.log, after_number, limit)

    def read_journal(
        self, paths: RunPaths, after_number: int, limit: int | None = None
    ) -> Segments:
        """The journal's segments after ``after_number``, as (number, records); see `read_log`.

        With a limit they are asked for at once: a day of training leaves tens of thousands.

        A line that is not a JSON object becomes ``{"unreadable": its first 200 characters}``.
        """
        pieces = self._numbered(paths.journal, after_number, limit)
        return [(number, parse_records(data)) for number, data in pieces]

    # ------------------------------------------------------------------ helpers

    def _numbered(self, name_of: Callable[[int], str], after: int, limit: int | None) -> Pieces:
        # Asked for by name: a GET costs a tenth of a listing, and this is done every second.
        pieces: Pieces = []
        if limit is not None and limit > 1:
            numbers = range(after + 1, after + limit + 1)
            with ThreadPoolExecutor(min(limit, _READS_AT_ONCE)) as pool:
                found = list(pool.map(lambda number: self.read(name_of(number)), numbers))
            there = itertools.takewhile(
                lambda piece: piece[1] is not None, zip(numbers, found, strict=True)
            )
            return [(number, data) for number, data in there if data is not None]
        while limit is None or len(pieces) < limit:
            number = after + len(pieces) + 1
            data = self.read(name_of(number))
            if data is None:
                break
            pieces.append((number, data))
        return pieces

    def _listed(self, prefix: str, after: str | None = None) -> Iterator[ObjectInfo]:
        blobs = self._client.list_blobs(
            self._bucket,
            prefix=prefix,
            start_offset=after,
            fields="items(name,size,crc32c,md5Hash,generation),nextPageToken",
            retry=self._retry,
        )
        for blob in blobs:
            if blob.name != after:  # startOffset includes the name itself
                yield _info(blob)

    def _upload(
        self, blob: Blob, source: Path | bytes, content_type: str | None, **conditions: int
    ) -> None:
        content_type = content_type or "application/octet-stream"
        if isinstance(source, bytes):
            blob.upload_from_string(
                source, content_type=content_type, retry=self._retry, **conditions
            )
            return
        if source.stat().st_size > SINGLE_REQUEST_BYTES:
            blob.chunk_size = SINGLE_REQUEST_BYTES
        blob.upload_from_filename(
            str(source), content_type=content_type, retry=self._retry, **conditions
        )

    def _same_content(self, name: str, source: Path) -> bool:
        existing = self.info(name)
        return existing is not None and _content(source) == (existing.size, existing.crc32c)


def parse_records(data: bytes) -> list[dict[str, Any]]:
    """The records of one journal segment (JSON lines)."""
    records: list[dict[str, Any]] = []
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            record = {"unreadable": line[:200].decode(errors="replace")}
        records.append(record)
    return records


def _info(blob: Blob) -> ObjectInfo:
    md5 = blob.md5_hash
    return ObjectInfo(
        name=blob.name,
        size=int(blob.size or 0),
        crc32c=blob.crc32c or "",
        md5=base64.b64decode(md5).hex() if md5 else None,
        generation=str(blob.generation),
    )


def _content(source: Path | bytes) -> tuple[int, str]:
    """Size and crc32c (base64, as Cloud Storage gives it) of what is to be uploaded."""
    import google_crc32c

    checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
    if isinstance(source, bytes):
        checksum.update(source)
        size = len(source)
    else:
        size = 0
        with source.open("rb") as file:
            while block := file.read(1024 * 1024):
                checksum.update(block)
                size += len(block)
    return size, base64.b64encode(checksum.digest()).decode()


def _owner_prefix(name: str) -> str:
    """The directory of the run or model that ``name`` belongs to, else its parent directory."""
    parts = name.split("/")
    for index, part in enumerate(parts[:-1]):
        if _OWNER.fullmatch(part):
            return "/".join(parts[: index + 1]) + "/"
    return "/".join(parts[:-1]) + "/" if len(parts) > 1 else name


def _difference(entry: dict[str, Any], found: ObjectInfo | None) -> str | None:
    """What sets the object apart from its manifest entry, in a few words; None if nothing."""
    if found is None:
        return "missing"
    if int(entry["size"]) != found.size:
        return f"{found.size} bytes, not {entry['size']}"
    if entry.get("crc32c"):
        if entry["crc32c"] != found.crc32c:
            return f"crc32c {found.crc32c}, not {entry['crc32c']}"
        return None
    if entry.get("md5") and found.md5:
        return None if entry["md5"] == found.md5 else f"md5 {found.md5}, not {entry['md5']}"
    return "no checksum to compare"
