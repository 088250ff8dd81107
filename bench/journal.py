"""Seconds and memory for a client to apply 100,000 metric points from the bucket to its store.

    python bench/journal.py [--points 100000] [--segment 1000]

The journal lies in the emulator's bucket as an agent leaves it, one record a point; it is applied
to a sqlite file and to an `mlflow server` on loopback. Goals: 60 s, and memory that does not grow
with the number of points.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.tracking import MlflowClient
from record import Figures, Say

from gce_backend.agent.paths import RunPaths
from gce_backend.emulator import Emulator
from gce_backend.emulator.ports import free_port
from gce_backend.storage import Storage
from gce_backend.sync import JournalApplier

BUCKET = "journal"


def put_journal(storage: Storage, paths: RunPaths, count: int, segment: int) -> None:
    for number, first in enumerate(range(0, count, segment), 1):
        lines = "".join(
            json.dumps(line(paths.run_id, i)) + "\n"
            for i in range(first, min(count, first + segment))
        )
        storage.put(paths.journal(number), lines.encode())


def line(run_id: str, number: int) -> dict[str, object]:
    at = 1_764_000_000_000 + number
    key, value = f"metric {number % 4}", number / 7
    body = {"run_id": run_id, "key": key, "value": value, "timestamp": at, "step": number}
    return {"seq": number, "at": at, "path": "runs/log-metric", "method": "POST", "body": body}


@contextmanager
def server(file: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{file}"],
        cwd=file.parent,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def measure(storage: Storage, uri: str, kind: str, count: int, segment: int, say: Say) -> None:
    client = MlflowClient(uri)
    location = f"gs://{BUCKET}/mlflow-gce/experiments/{kind}"
    experiment = client.create_experiment(kind, artifact_location=location)
    run_id = client.create_run(experiment).info.run_id
    paths = RunPaths("mlflow-gce", run_id)
    applier = JournalApplier(storage, paths, tracking_uri=uri, run_id=run_id)
    applier.apply_new()  # imports and connections
    put_journal(storage, paths, count, segment)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    applied = applier.apply_new()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    held = sum(len(client.get_metric_history(run_id, f"metric {n}")) for n in range(4))
    if (applied, held, applier.refused) != (count, count, []):
        sys.exit(f"{kind}: {applied} applied, {held} in the store, of {count}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = (after.ru_maxrss - before.ru_maxrss) / 1024
    say(
        f"{kind}: {count} points in {seconds:.1f} s ({count / seconds:.0f} a second, {cpu:.1f} s "
        f"of the client's CPU), memory +{grown:.0f} MiB (goal: 100,000 in 60 s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--segment", type=int, default=1000, help="records in a segment")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        Emulator(boot_seconds=0.1) as emulator,
        Figures("A journal, applied to the store") as figures,
    ):
        points, segment, say = options.points, options.segment, figures.say
        os.environ.update(emulator.env)
        emulator.create_bucket(BUCKET)
        storage = Storage(BUCKET, project="p")
        for kind in ("sqlite", "server"):
            file = Path(directory) / f"{kind}.db"
            MlflowClient(f"sqlite:///{file}").search_experiments()  # makes its tables
            if kind == "sqlite":
                measure(storage, f"sqlite:///{file}", kind, points, segment, say)
            else:
                with server(file) as uri:
                    measure(storage, uri, kind, points, segment, say)


if __name__ == "__main__":
    main()
