from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cloud import Bucket, ControlPlane, Gcs
from .front import Front
from .instance import TestInstance, build_zip


@pytest.fixture(scope="session")
def gcs() -> Iterator[Gcs]:
    server = Gcs()
    yield server
    server.stop()


@pytest.fixture
def bucket(gcs: Gcs) -> Bucket:
    return Bucket(gcs.url, f"bucket-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="module")
def module_bucket(gcs: Gcs) -> Bucket:
    return Bucket(gcs.url, f"bucket-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    server = ControlPlane()
    yield server
    server.stop()


@pytest.fixture
def front(gcs: Gcs) -> Iterator[Front]:
    server = Front(gcs.url)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def agent_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zip(tmp_path_factory.mktemp("agent") / "agent.pyz")


@pytest.fixture
def instance(
    tmp_path: Path, agent_zip: Path, bucket: Bucket, plane: ControlPlane
) -> Iterator[TestInstance]:
    one = TestInstance(tmp_path / "instance", agent_zip, bucket, plane)
    yield one
    one.clean_up()
