"""Seconds an instance bills besides boot and training: a lab's script against this backend.

    python bench/instance_seconds.py [--seconds 4 12 20 28 36]

`tests/emulator/train_remote.sh` is a hands-on's own script, with the real gcloud: create, wait for
SSH, copy, train, look into the bucket every 30 s, delete. Both train at the same time, on the same
emulator (10 s to boot, 5 s more until SSH answers), with the same train.py, which speaks that
script's `--epochs --output-gcs` and takes a second an epoch. Then a training that crashes, and one
on an image without Python packages. Seconds are those of the emulator's own record of calls.

Needs root, since gcloud's ssh insists on port 22.
"""

import argparse
import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from mlflow.tracking import MlflowClient
from record import record

from gce_backend.emulator import Emulator
from gce_backend.prices import price
from gce_backend.storage import Storage

SCRIPT = Path(__file__).parents[1] / "tests/emulator/train_remote.sh"
BUCKET = "isae-sdd-de-2526"  # the one the script names
BOOT, SSH = 10.0, 5.0
PATIENCE = 45.0  # for the script after a crash, in which it never ends
EMPTY = "projects/emulator-images/global/images/family/python-empty"

TRAINER = """\
import argparse, json, os, sys, time, urllib.request

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--output-gcs")
options = parser.parse_args()
bucket, _, prefix = options.output_gcs.removeprefix("gs://").partition("/")

def upload(name, content):
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/{bucket}/o"
    url += f"?uploadType=media&name={prefix}/{name}"
    urllib.request.urlopen(urllib.request.Request(url, data=content.encode()), timeout=30)

start = time.time()
time.sleep(options.epochs)
epochs = list(range(1, options.epochs + 1))
metrics = {"epoch": epochs, "test_loss": [0.1] * len(epochs), "test_accuracy": [99.0] * len(epochs)}
upload("times.json", json.dumps([start, time.time()]))
if CRASHES:
    sys.exit("out of luck")
upload("model.pt", "weights")
upload("metrics.json", json.dumps(metrics))
print("Results uploaded to", options.output_gcs)
"""
PROJECT = """\
name: bench
python_env: python_env.yaml
entry_points:
  main:
    parameters: {epochs: float, output: string}
    command: python train.py --epochs $(printf %.0f {epochs}) --output-gcs {output}
"""


@dataclass(frozen=True)
class Life:
    """One instance: seconds that are neither boot nor training, before and after the training."""

    before: float
    after: float | None  # None: nobody deleted it

    @property
    def own(self) -> float:
        assert self.after is not None
        return self.before + self.after


def prepared(directory: Path, *, crashes: bool = False, requirement: str = "pip") -> Path:
    directory.mkdir()
    (directory / "train.py").write_text(TRAINER.replace("CRASHES", str(crashes)))
    (directory / "MLproject").write_text(PROJECT)
    (directory / "python_env.yaml").write_text(f"dependencies: [{requirement}]\n")
    return directory


class Stage:
    """The emulator, and both ways to train on it."""

    def __init__(self, emulator: Emulator, home: Path) -> None:
        self._emulator, self._home = emulator, home
        self._storage = Storage(BUCKET, project=emulator.project)
        uri = f"sqlite:///{home / 'mlflow.db'}"
        MlflowClient(uri).search_experiments()  # makes the tables, once
        self._environ = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_GCE_BUCKET": BUCKET}

    def script(self, project: Path, seconds: int) -> Life:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        process = subprocess.Popen(
            ["bash", str(SCRIPT), str(seconds)],
            env={**kept, **self._emulator.env, "HOME": str(self._home), "USER": getpass.getuser()},
            cwd=project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(BOOT + SSH + seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return self._life("training-vm-", "runs/", BOOT + SSH)

    def backend(self, project: Path, seconds: int, *words: str) -> Life:
        prefix = f"ours/{project.name}-{seconds}"
        arguments = ["-P", f"epochs={seconds}", "-P", f"output=gs://{BUCKET}/{prefix}"]
        command = [sys.executable, "-m", "mlflow", "run", str(project), "--backend", "gce"]
        subprocess.run(
            [*command, *arguments, *words],
            env=self._environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,  # the one that crashes ends with its exit code
        )
        return self._life("mlflow-", prefix, BOOT)

    def _life(self, instance: str, prefix: str, machine: float) -> Life:
        """Of the latest instance whose name begins so, and the latest times.json below prefix."""
        calls = self._emulator.calls
        inserts = [c for c in calls if c.name == "instances.insert" and c.body]
        insert = [c for c in inserts if c.body and c.body["name"].startswith(instance)][-1]
        assert insert.body is not None
        ending = f"/{insert.body['name']}"
        deletes = [c.at for c in calls if c.name == "instances.delete" and c.path.endswith(ending)]
        found = [info.name for info in self._storage.list(prefix) if "times.json" in info.name]
        spans = [json.loads(self._storage.read(name) or b"") for name in found]
        start, end = max(span for span in spans if span[0] > insert.at)
        after = min(deletes) - end if deletes else None
        return Life(start - insert.at - machine, after)


def table(lives: dict[int, tuple[Life, Life]], crash: tuple[Life, Life], empty: Life) -> str:
    rows = [
        "| training | script: before + after = own | backend: before + after = own | times |",
        "|---|---|---|---|",
    ]
    for seconds, (theirs, ours) in lives.items():
        rows.append(
            f"| {seconds} s | {_sum(theirs)} | {_sum(ours)} | {theirs.own / ours.own:.1f} |"
        )
    theirs, ours = crash
    rows.append(
        f"| crashes after 4 s | {_sum(theirs)} | {_sum(ours)} | |\n"
        f"| environment from nothing | | {_sum(empty)} | |"
    )
    return "\n".join(rows)


def _sum(life: Life) -> str:
    if life.after is None:
        return f"never deleted (given up after {PATIENCE:.0f} s)"
    return f"{life.before:.1f} + {life.after:.1f} = {life.own:.1f} s"


def costs(script: float, backend: float) -> str:
    """USD for 1,000 runs of a minute, by what each of them adds to boot and training."""
    found = price(
        "n1-standard-2", "europe-west1-b", spot=False, disk_type="pd-balanced", disk_gb=50
    )
    assert found is not None
    minute = 60.0
    lives = {
        "the training alone": minute,
        "this backend": BOOT + minute + backend,
        "the script": BOOT + SSH + minute + script,
    }
    return ", ".join(f"{name} ${1000 * found.cost(seconds):.2f}" for name, seconds in lives.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=[4, 12, 20, 28, 36])
    options = parser.parse_args()
    if not shutil.which("gcloud") or os.geteuid() != 0:
        sys.exit("instance_seconds: gcloud and root are needed; left out")
    with (
        tempfile.TemporaryDirectory() as name,
        Emulator(boot_seconds=BOOT, ssh_seconds=SSH, legacy_images=True) as emulator,
        ThreadPoolExecutor() as pool,
    ):
        os.environ.update(emulator.env, MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_GCE_GLANCE="false")
        emulator.create_bucket(BUCKET)
        home = Path(name)
        stage, project = Stage(emulator, home), prepared(home / "project")

        def both(project: Path, seconds: int) -> tuple[Life, Life]:
            theirs = pool.submit(stage.script, project, seconds)
            ours = stage.backend(project, seconds)
            print(f"{seconds} s: backend {_sum(ours)}", flush=True)
            print(f"{seconds} s: script {_sum(theirs.result())}", flush=True)
            return theirs.result(), ours

        stage.backend(project, 1)  # brings the agent and uv to the bucket
        lives = {seconds: both(project, seconds) for seconds in options.seconds}
        crash = both(prepared(home / "crashing", crashes=True), 4)
        bare = prepared(home / "bare", requirement="scikit-learn")
        empty = stage.backend(bare, 4, "-P", f"machine.image={EMPTY}")
    script = mean(theirs.own for theirs, _ in lives.values())
    backend = mean(ours.own for _, ours in lives.values())
    ends = {name: [life.after or 0 for life in column] for name, column in zip(
        ("script", "backend"), zip(*lives.values(), strict=True), strict=True)}  # fmt: skip
    record(
        "Instance-seconds, end to delete, cost of waiting",
        f"{table(lives, crash, empty)}\n\n"
        f"Own seconds are those that are neither boot ({BOOT:g} s, and {SSH:g} s until SSH for the "
        f"script) nor training. On average {script:.1f} s against {backend:.1f} s, "
        f"{script / backend:.1f} times (goal: at most 3 s, constant, the same after a crash). "
        "From nothing means uv installing scikit-learn on an image without packages.\n\n"
        f"End of the training to the delete call: script {min(ends['script']):.1f} to "
        f"{max(ends['script']):.1f} s, backend {min(ends['backend']):.2f} to "
        f"{max(ends['backend']):.2f} s (goal: under 1 s, with verification).\n\n"
        f"1,000 runs of a minute by list price: {costs(script, backend)}.",
    )


if __name__ == "__main__":
    main()
