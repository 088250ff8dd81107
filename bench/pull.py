"""`mlflow-gce pull` of one large artifact against `gcloud storage cp` of the same object.

    python bench/pull.py [--megabytes 2000] [--rounds 3]

In turns, on one emulator: whole processes, start to end, and the highest memory of ours. Then a
pull is killed half-way and run again: what the second one fetches is the figure.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mlflow.tracking import MlflowClient
from mlflow.utils.proto_json_utils import message_to_json
from record import Figures, Say

from gce_backend.emulator import Emulator
from gce_backend.storage import Storage

PULL = str(Path(sys.executable).with_name("mlflow-gce"))
BLOCK = 1_000_000
GOAL = 0.8
UNITS = {"kiB": 1024, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def measured(words: list[str]) -> tuple[float, float, str]:
    """Wall clock, the process's highest resident memory in MB, and what it wrote."""
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words}: status {status}\n{text}")
    return time.perf_counter() - started, usage.ru_maxrss / 1000, text


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
    storage = Storage("bench-bucket", project=emulator.project)
    storage.put_once(name, file)
    run = json.loads(message_to_json(client.get_run(run_id).to_proto()))
    storage.put_json(f"mlflow-gce/runs/{run_id}/spec.json", {"tracking": {"run": run}})
    return run_id, f"gs://bench-bucket/{name}"


def compare(run_id: str, uri: str, folder: Path, rounds: int, megabytes: int, say: Say) -> None:
    wholes, other_wholes, speeds, other_speeds, memory = [], [], [], [], 0.0
    for number in range(rounds):
        target = folder / f"ours-{number}"
        seconds, peak, text = measured([PULL, "pull", run_id, str(target), "--json"])
        wholes.append(seconds)
        speeds.append(megabytes / float(re.findall(r'"seconds": ([\d.]+)', text)[0]))
        memory = max(memory, peak)
        shutil.rmtree(target)
        other = folder / "theirs.bin"
        seconds, _, text = measured(["gcloud", "storage", "cp", uri, str(other)])
        other_wholes.append(seconds)
        amount, unit = re.findall(r"Average throughput: ([\d.]+)(\wi?B)/s", text)[0]
        other_speeds.append(float(amount) * UNITS[unit] / 1e6)
        other.unlink()
    for what, ours, theirs in (
        ("transfer alone", median(speeds), median(other_speeds)),
        ("whole processes", megabytes / median(wholes), megabytes / median(other_wholes)),
    ):
        say(
            f"{megabytes} MB, {what}: mlflow-gce pull {ours:.0f} MB/s, gcloud storage cp "
            f"{theirs:.0f} MB/s: {ours / theirs:.0%} of gcloud's (goal: at least {GOAL:.0%})"
        )
    say(f"memory of mlflow-gce pull: at most {memory:.0f} MB")


def interrupted(run_id: str, folder: Path, megabytes: int, say: Say) -> None:
    target = folder / "killed"
    process = subprocess.Popen([PULL, "pull", run_id, str(target)], stdout=subprocess.DEVNULL)
    while not any(p.stat().st_size > megabytes * BLOCK / 2 for p in target.glob("*-part")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, _, text = measured([PULL, "pull", run_id, str(target), "--json"])
    fetched = int(re.findall(r'"fetched": (\d+)', text)[0])
    say(f"killed half-way and run again: {fetched / 1e6:.0f} of {megabytes} MB fetched")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        Emulator(boot_seconds=0.02) as emulator,
        Figures("Pull") as figures,
    ):
        say = figures.say
        folder = Path(name)
        os.environ.update(emulator.env)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.environ["MLFLOW_GCE_GLANCE"] = "false"
        os.environ["MLFLOW_GCE_BUCKET"] = "bench-bucket"
        run_id, uri = prepare(emulator, folder, options.megabytes)
        if shutil.which("gcloud"):
            compare(run_id, uri, folder, options.rounds, options.megabytes, say)
        interrupted(run_id, folder, options.megabytes, say)


if __name__ == "__main__":
    main()
