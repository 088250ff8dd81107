"""Large files, and files whose upload did not go well."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gce_backend.agent.files import size_of

from .cloud import Bucket, ControlPlane, wait_for
from .front import Front
from .instance import TestInstance
from .sink import Sink, Upload

pytestmark = pytest.mark.flow  # real processes and servers

MB = 1024**2

# Uploads sparse files NAME=BYTES from its working directory; an error is printed and swallowed.
CARELESS = """
import http.client, os, sys, time, urllib.parse
class Slow:
    def __init__(self, file): self.file = file
    def read(self, amount):
        time.sleep(0.001)
        return self.file.read(amount)
where = urllib.parse.urlsplit(os.environ["MLFLOW_TRACKING_URI"])
for argument in sys.argv[1:]:
    name, _, size = argument.partition("=")
    with open(name, "wb") as file:
        file.truncate(int(size))
    path = f"/api/2.0/mlflow-artifacts/artifacts/{os.environ['ARTIFACTS']}/{name}"
    headers = {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"]}
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=300)
    try:
        body = open(name, "rb")
        headers["Content-Length"] = size
        connection.request("PUT", path, Slow(body) if name == "slow.bin" else body, headers)
        print(name, connection.getresponse().status, flush=True)
    except (OSError, http.client.HTTPException) as error:
        print(name, "failed:", type(error).__name__, flush=True)
"""


@pytest.fixture
def sink() -> Iterator[Sink]:
    server = Sink()
    yield server
    server.stop()


def submit(instance: TestInstance, *files: str, **changes: Any) -> None:
    command = f"{sys.executable} train.py {' '.join(files)}"
    where = f"{instance.bucket.name}/{instance.artifacts}"
    instance.submit(command, {"train.py": CARELESS}, env={"ARTIFACTS": where}, **changes)


@pytest.mark.parametrize("size", [64 * MB, pytest.param(2048 * MB, marks=pytest.mark.long)])
def test_a_large_file_needs_little_memory_and_goes_on_where_it_broke_off(
    tmp_path: Path, agent_zip: Path, plane: ControlPlane, sink: Sink, size: int
) -> None:
    lost: list[int] = []

    def lose(upload: Upload) -> bool:
        """Two replies in the middle do not arrive."""
        if upload.size in (24 * MB, 40 * MB) and upload.size not in lost:
            lost.append(upload.size)
            return True
        return False

    sink.lose = lose
    instance = TestInstance(tmp_path / "instance", agent_zip, Bucket(sink.url, "large"), plane)
    submit(instance, f"large.bin={size}", deadline=time.time() + 280)
    instance.start()
    assert instance.process is not None
    peak = 0
    while instance.process.poll() is None:
        peak = max(peak, instance.peak_memory())
        time.sleep(0.05)
    instance.clean_up()

    assert instance.status["verified"], instance.log
    assert sink.objects[f"{instance.artifacts}/large.bin"].size == size
    assert len(sink.sessions) == 1 and len(lost) == 2, "one upload, continued"
    assert sink.chunks == size / (8 * MB)
    assert 0 < peak < 150 * MB
    shutil.rmtree(instance.state)  # pytest would keep it for days


def test_a_trainer_that_swallows_a_failed_upload_has_its_file_in_the_bucket(
    instance: TestInstance, front: Front
) -> None:
    """The agent dies in the middle of one, while the bucket refuses everything."""
    instance.storage_url = front.url
    submit(instance, "small.bin=10", f"slow.bin={20 * MB}")
    instance.start()
    spool, log = instance.state / "spool", instance.state / "run.log"
    wait_for(
        lambda: [file for file in spool.glob(".*.tmp") if size_of(file) > MB],
        "the upload of the slow file is under way",
    )
    front.refuse = lambda method, path: 503
    instance.kill()
    wait_for(lambda: "slow.bin failed" in log.read_text(), "the trainer has swallowed it")
    instance.start()
    wait_for((instance.state / "trainer" / "exit_code").exists, "the trainer has ended")
    front.refuse = lambda method, path: None

    status = instance.wait()

    assert (status["end_reason"], status["verified"]) == ("succeeded", True), instance.log
    sizes = {
        item["name"].rpartition("/")[2]: item["size"]
        for item in instance.bucket.json(instance.paths.manifest)["objects"]
        if item["name"].startswith(instance.artifacts)
    }
    assert sizes == {"small.bin": 10, "slow.bin": 20 * MB}
    assert "slow.bin: its upload failed; taken from " in instance.log
