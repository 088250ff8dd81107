"""A hundred thousand points while the bucket is away and the agent dies."""

from __future__ import annotations

from typing import Any

import pytest

from .cloud import wait_for
from .front import Front
from .instance import TestInstance

pytestmark = pytest.mark.flow  # real processes and servers

POINTS = 100_000
MB = 1024**2

# 1,000 points one by one, the others in batches of 1,000; then waits to be let go.
TRAINER = """
import http.client, json, os, pathlib, time, urllib.parse
where = urllib.parse.urlsplit(os.environ["MLFLOW_TRACKING_URI"])
relay = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
def post(path, **body):
    headers = {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"]}
    body = json.dumps({"run_id": os.environ["MLFLOW_RUN_ID"], **body})
    relay.request("POST", "/api/2.0/mlflow/runs/" + path, body, headers)
    assert relay.getresponse().read() == b"{}"
def point(step):
    return {"key": "loss", "value": 1 / step, "timestamp": step, "step": step}
for step in range(1, 1001):
    post("log-metric", **point(step))
for first in range(1001, 100001, 1000):
    post("log-batch", metrics=[point(step) for step in range(first, first + 1000)])
relay.request("GET", "/api/2.0/mlflow/metrics/get-history?metric_key=loss&run_id="
              + os.environ["MLFLOW_RUN_ID"],
              headers={"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"]})
print("read back", len(json.loads(relay.getresponse().read())["metrics"]), flush=True)
while not pathlib.Path("enough").exists():
    time.sleep(0.05)
"""


def points(records: list[dict[str, Any]]) -> list[int]:
    """The steps of all points, in the journal's order."""
    found: list[int] = []
    for record in records:
        body = record["body"]
        found += [point["step"] for point in body.get("metrics", [body])]
    return found


def test_none_is_lost_and_the_agent_stays_small(instance: TestInstance, front: Front) -> None:
    """The trainer writes it all while nothing leaves the instance, and never waits for that."""
    instance.storage_url = front.url
    instance.submit("python train.py", {"train.py": TRAINER})
    instance.start()
    log = instance.state / "run.log"
    wait_for(lambda: "running" in instance.phases, "the trainer is started")
    front.refuse = lambda method, path: 503
    wait_for(lambda: "read back" in log.read_text(), "the trainer has written", 60)
    first = instance.peak_memory()
    instance.kill()
    instance.start()
    wait_for(lambda: "the trainer went on" in log.read_text(), "the agent is back")
    front.refuse = lambda method, path: None
    (instance.state / "work" / "enough").touch()
    wait_for(lambda: instance.status, "status.json", 60)
    second = instance.peak_memory()
    status = instance.wait()

    assert (status["end_reason"], status["verified"]) == ("succeeded", True)
    assert f"read back {POINTS}" in log.read_text()
    assert points(instance.journal) == list(range(1, POINTS + 1))
    assert [r["seq"] for r in instance.journal] == list(range(1, status["journal_records"] + 1))
    assert max(first, second) < 150 * MB
