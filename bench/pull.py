"""`mlflow-gce pull` of one large artifact against `gcloud storage cp` of the same object.

    python bench/pull.py [--megabytes 2000] [--rounds 3]

In turns, on one emulator: whole processes, start to end, and the highest memory of ours. Then a
pull is killed half-way and run again: what the second one fetches is the figure.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mlflow.tracking import MlflowClient

from gce_backend.emulator import Emulator
from gce_backend.storage import Storage

PULL = str(Path(sys.executable).with_name("mlflow-gce"))
BLOCK = 1_000_000
GOAL = 0.8


def seconds_and_memory(words: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Wall clock, and the process's highest resident memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words}: status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 1000


def prepare(emulator: Emulator, folder: Path, megabytes: int) -> tuple[str, str]:
    """A run whose one artifact is that large: (its id, the artifact's URI)."""
    emulator.create_bucket("bench-bucket")
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.create_experiment("bench", "gs://bench-bucket/experiments/bench")
    run_id = client.create_run(experiment).info.run_id
    tags = {
        "gce.run": f"gs://bench-bucket/mlflow-gce/runs/{run_id}",
        "gce.project": emulator.project,
        "gce.zone": "europe-west1-b",
        "gce.instance": f"mlflow-{run_id}-1",
    }
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    file = folder / "big.bin"
    with file.open("wb") as out:
        for _ in range(megabytes):
            out.write(os.urandom(BLOCK))
    name = f"experiments/bench/{run_id}/artifacts/big.bin"
    Storage("bench-bucket", project=emulator.project).put_once(name, file)
    return run_id, f"gs://bench-bucket/{name}"


def compare(run_id: str, uri: str, folder: Path, rounds: int, megabytes: int) -> None:
    ours, theirs, memory = [], [], 0.0
    for number in range(rounds):
        target = folder / f"ours-{number}"
        seconds, peak = seconds_and_memory([PULL, "pull", run_id, str(target)], dict(os.environ))
        ours.append(seconds)
        memory = max(memory, peak)
        shutil.rmtree(target)
        other = folder / "theirs.bin"
        command = ["gcloud", "storage", "cp", uri, str(other), "--quiet"]
        theirs.append(seconds_and_memory(command, dict(os.environ))[0])
        other.unlink()
    speed, other_speed = megabytes / median(ours), megabytes / median(theirs)
    print(
        f"{megabytes} MB, whole processes: mlflow-gce pull {median(ours):.1f} s "
        f"({speed:.0f} MB/s), gcloud storage cp {median(theirs):.1f} s ({other_speed:.0f} MB/s): "
        f"{speed / other_speed:.0%} of gcloud's speed (goal: at least {GOAL:.0%}); "
        f"pull's memory at most {memory:.0f} MB"
    )


def interrupted(run_id: str, folder: Path, emulator: Emulator, megabytes: int) -> None:
    target = folder / "killed"
    process = subprocess.Popen([PULL, "pull", run_id, str(target)], stdout=subprocess.DEVNULL)
    while not any(p.stat().st_size > 4 for p in target.glob("*.done")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(emulator.calls)
    subprocess.run([PULL, "pull", run_id, str(target)], stdout=subprocess.DEVNULL, check=True)
    pieces = [c for c in emulator.calls[before:] if c.path.endswith("big.bin")]
    print(f"killed half-way and run again: {len(pieces)} of {-(-megabytes // 33)} pieces fetched")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Emulator(boot_seconds=0.02) as emulator:
        folder = Path(name)
        os.environ.update(emulator.env)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.environ["MLFLOW_GCE_GLANCE"] = "false"
        run_id, uri = prepare(emulator, folder, options.megabytes)
        if shutil.which("gcloud"):
            compare(run_id, uri, folder, options.rounds, options.megabytes)
        interrupted(run_id, folder, emulator, options.megabytes)


if __name__ == "__main__":
    main()
