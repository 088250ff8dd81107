"""Two epochs, a checkpoint each, by MLflow's REST API alone: a run in a tenth of a second.

At the gate named by its argument (epoch1, epoch2) the first attempt leaves a file `at-GATE` and
waits for one named `go`, both in its working directory.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

BASE, TOKEN = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_TOKEN"]
RUN = os.environ["MLFLOW_RUN_ID"]
CHECKPOINT = Path("checkpoints/epoch")


def call(method, path, body=None):
    request = urllib.request.Request(f"{BASE}/api/2.0/{path}", body, method=method)
    request.add_header("Authorization", f"Bearer {TOKEN}")
    request.add_header("Content-Type", "application/json")
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.read()
        except urllib.error.URLError:  # the relay is started again; MLflow's client waits too
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def log_metric(key, value, step):
    now = int(time.time() * 1000)
    body = {"run_id": RUN, "key": key, "value": value, "step": step, "timestamp": now}
    call("POST", "mlflow/runs/log-metric", json.dumps(body).encode())


def log_artifact(name, content):
    run = json.loads(call("GET", f"mlflow/runs/get?run_id={RUN}"))["run"]
    folder = run["info"]["artifact_uri"].partition(":")[2].strip("/")
    call("PUT", f"mlflow-artifacts/artifacts/{folder}/{name}", content)


def gate(name):
    if sys.argv[1] != name or os.environ.get("MLFLOW_GCE_ATTEMPT", "1") != "1":
        return
    Path(f"at-{name}").touch()
    while not Path("go").exists():
        time.sleep(0.02)


first = int(CHECKPOINT.read_text()) + 1 if CHECKPOINT.exists() else 1
for epoch in range(first, 3):
    log_metric("loss", 1 / epoch, epoch)
    gate(f"epoch{epoch}")
    CHECKPOINT.parent.mkdir(exist_ok=True)
    CHECKPOINT.write_text(str(epoch))
    log_artifact("checkpoints/epoch", str(epoch).encode())
    print(f"epoch {epoch} done", flush=True)
log_artifact("result.txt", b"done\n")
