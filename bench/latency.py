"""Seconds from `log_metric` on an instance until a point is readable in the bucket, in the store.

    python bench/latency.py [--points 60]

Two real runs on the emulator, followed by `mlflow run`: with a sqlite file as the store and with an
`mlflow server` on loopback. The trainer logs the time as a metric, every 0.31 s; the bucket and the
store are looked at 20 times a second. Goals: 5 s to the bucket, 2 s to the store.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from mlflow.tracking import MlflowClient
from record import Figures, Say

from gce_backend.emulator import Emulator
from gce_backend.emulator.ports import free_port
from gce_backend.storage import Storage

PAUSE = 0.05
TRAINER = """
import sys, time
import mlflow

with mlflow.start_run():
    for step in range(int(sys.argv[1])):
        mlflow.log_metric("logged_at", time.time(), step=step)
        time.sleep(0.31)
"""
Seen = dict[float, float]  # when a point was logged -> when it was readable


def watch(look: Callable[[], list[float]], seen: Seen, over: threading.Event) -> None:
    while not over.is_set():
        for logged in look():
            seen.setdefault(logged, time.time())
        time.sleep(PAUSE)


def in_file(file: Path) -> list[float]:
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        rows = database.execute("select value from metrics where key = 'logged_at'").fetchall()
    return [row[0] for row in rows]


def in_server(client: MlflowClient, run_ids: list[str]) -> list[float]:
    if not run_ids:
        experiments = [e.experiment_id for e in client.search_experiments()]
        run_ids += [run.info.run_id for run in client.search_runs(experiments)]
        return []
    return [point.value for point in client.get_metric_history(run_ids[0], "logged_at")]


class InBucket:
    """Reads each piece of the journal once."""

    def __init__(self, bucket: str) -> None:
        self._storage = Storage(bucket, project="p")
        self._read: set[str] = set()

    def __call__(self) -> list[float]:
        found = []
        for info in self._storage.list("mlflow-gce/runs/"):
            if "/journal/" in info.name and info.name not in self._read:
                self._read.add(info.name)
                lines = (self._storage.read(info.name) or b"").splitlines()
                found += [p["value"] for line in lines for p in points(json.loads(line)["body"])]
        return found


def points(body: dict[str, object]) -> list[dict[str, float]]:
    metrics = body.get("metrics", [body])
    assert isinstance(metrics, list)
    return [point for point in metrics if point.get("key") == "logged_at"]


def serve(file: Path, directory: Path) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{file}"],
        cwd=directory,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def measure(emulator: Emulator, directory: Path, kind: str, count: int, say: Say) -> None:
    bucket = f"latency-{kind}"
    emulator.create_bucket(bucket)
    project, file = directory / "project", directory / f"{kind}.db"
    project.mkdir(exist_ok=True)
    (project / "train.py").write_text(TRAINER)
    MlflowClient(f"sqlite:///{file}").search_experiments()  # makes its tables
    server, uri = serve(file, directory) if kind == "server" else (None, f"sqlite:///{file}")
    client, run_ids = MlflowClient(uri), list[str]()
    look = (lambda: in_server(client, run_ids)) if server else (lambda: in_file(file))
    over, stored, shipped = threading.Event(), Seen(), Seen()
    threads = [
        threading.Thread(target=watch, args=(looking, seen, over))
        for looking, seen in ((look, stored), (InBucket(bucket), shipped))
    ]
    for thread in threads:
        thread.start()
    try:
        command = [sys.executable, "-m", "mlflow", "run", str(project), "--backend", "gce"]
        (project / "MLproject").write_text(
            f"name: latency\nentry_points:\n  main:\n    command: python train.py {count}\n"
        )
        environ = {**os.environ, "MLFLOW_GCE_BUCKET": bucket, "MLFLOW_TRACKING_URI": uri}
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL, timeout=600)
        time.sleep(4 * PAUSE)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        if server is not None:
            server.terminate()
            server.wait()
    say(told(f"to the bucket (run with {kind}), goal 5 s", shipped, count))
    say(told(f"to the store ({kind}), followed, goal 2 s", stored, count))


def told(what: str, seen: Seen, count: int) -> str:
    late = sorted(readable - logged for logged, readable in seen.items())
    if len(late) != count:
        sys.exit(f"{what}: {len(late)} of {count} points")
    middle, most = late[len(late) // 2], late[int(0.95 * len(late))]
    return f"{what}: median {middle:.2f} s, 95 % {most:.2f} s, most {late[-1]:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Emulator(boot_seconds=0.1) as emulator:
        os.environ.update(emulator.env, MLFLOW_DISABLE_TELEMETRY="true")
        with Figures("A metric, from the instance to whoever reads it") as figures:
            for kind in ("sqlite", "server"):
                measure(emulator, Path(directory), kind, options.points, figures.say)


if __name__ == "__main__":
    main()
