"""How long a person waits: `--help`, `ps`, and from `mlflow run` to the request for an instance.

    python bench/startup.py [--instances 200] [--rounds 3]

The last is measured in turns with `mlflow run --env-manager local` reaching its entry point, since
importing MLflow is most of both; the ratio is the figure. Then what the imports of it cost.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from mlflow.tracking import MlflowClient
from record import record

from gce_backend.compute import Compute
from gce_backend.emulator import Emulator
from gce_backend.storage import Storage

COMMAND = str(Path(sys.executable).with_name("mlflow-gce"))
MLFLOW = [sys.executable, "-m", "mlflow"]
ZONE = "europe-west1-b"
IMAGE = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
PROJECT = """\
name: bench
entry_points:
  main:
    command: "python -c 'import time; print(time.time())' > reached"
"""


def seconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def fill(emulator: Emulator, many: int) -> None:
    """Instances as runs have them, each with a heartbeat in the bucket."""
    compute = Compute(emulator.project, endpoint=emulator.compute_url)
    storage = Storage("bench-bucket", project=emulator.project)
    for number in range(many):
        run_id = f"{number:032x}"
        now = time.time()
        phases = [{"phase": "running", "at": now}]
        storage.put_json(
            f"mlflow-gce/runs/{run_id}/heartbeat",
            {"at": now + 3600, "attempt": 1, "phases": phases},
        )
        spec = f"gs://bench-bucket/mlflow-gce/runs/{run_id}/spec.json"
        body = {
            "name": f"mlflow-{run_id}-1",
            "machineType": f"zones/{ZONE}/machineTypes/n1-standard-2",
            "labels": {
                "mlflow-gce-run": run_id,
                "mlflow-gce-attempt": "1",
                "mlflow-gce-owner": "bench",
                "mlflow-gce-deadline": str(round(now + 3600)),
            },
            "disks": [
                {"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": IMAGE}}
            ],
            "networkInterfaces": [{"network": "global/networks/default"}],
            "metadata": {"items": [{"key": "mlflow-gce-spec", "value": spec}]},
        }
        compute.insert(ZONE, body)


def to_insert(emulator: Emulator, project: Path) -> float:
    """From the start of `mlflow run --backend gce` to the insert's arrival."""
    before = len(emulator.calls)
    started = time.time()
    config = '{"gce.follow": false}'
    words = [*MLFLOW, "run", str(project), "--backend", "gce", "--backend-config", config]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    inserts = [c for c in emulator.calls[before:] if c.name == "instances.insert"]
    return inserts[0].at - started


def to_entry_point(project: Path) -> float:
    """From the start of `mlflow run` here to its entry point."""
    started = time.time()
    words = [*MLFLOW, "run", str(project), "--env-manager", "local"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return float((project / "reached").read_text()) - started


def imports(project: Path) -> list[tuple[str, float]]:
    """What the packages cost that `mlflow run --backend gce` imports: (name, seconds)."""
    config = '{"gce.follow": false}'
    words = ["-m", "mlflow", "run", str(project), "--backend", "gce", "--backend-config", config]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], check=True, capture_output=True, text=True
    )
    spent: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        package = ".".join(name.split(".")[: 3 if name.startswith("google.") else 1])
        spent[package] += int(own)
    return [(name, micro / 1e6) for name, micro in spent.most_common(12)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds = range(options.rounds)
    with tempfile.TemporaryDirectory() as name, Emulator(boot_seconds=0.02) as emulator:
        folder = Path(name)
        os.environ.update(emulator.env)
        os.environ["MLFLOW_GCE_BUCKET"] = "bench-bucket"
        os.environ["MLFLOW_GCE_GLANCE"] = "false"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        emulator.create_bucket("bench-bucket")
        MlflowClient().search_experiments()  # makes the tables, once
        project = folder / "project"
        project.mkdir()
        (project / "MLproject").write_text(PROJECT)
        shown = [seconds([COMMAND, "--help"]) for _ in range(7)]
        lines = [f"- `mlflow-gce --help`: {median(shown):.2f} s (goal: 0.3)"]
        to_insert(emulator, project)  # brings the agent and uv to the bucket
        pairs = [(to_insert(emulator, project), to_entry_point(project)) for _ in rounds]
        insert, entry = (median(column) for column in zip(*pairs, strict=True))
        lines.append(
            f"- process start to insert: {insert:.2f} s; `mlflow run` here to its entry point: "
            f"{entry:.2f} s; ratio {insert / entry:.2f} (goal: at most 2)"
        )
        for package, spent in imports(project):
            print(f"  {spent:5.2f} s  {package}")
        fill(emulator, options.instances)
        listed = [seconds([COMMAND, "ps"]) for _ in rounds]
        seconds_listed = f"{median(listed):.2f} s (goal: 2)"
        lines.append(f"- `mlflow-gce ps`, {options.instances} instances: {seconds_listed}")
        record("Waiting for commands, and submit", "\n".join(lines))


if __name__ == "__main__":
    main()
