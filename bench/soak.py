"""A soak: many runs on the emulator while its APIs fail at random; nothing may leak or be lost.

    python bench/soak.py                                       # 200 one after another, 50 at once
    python bench/soak.py --runs 10 --at-once 5 --faults 5 --seed 1

Everything is real but the cloud: client, agents, instances, a trainer that logs a metric a step and
leaves a file. `--faults` per cent of all calls of both services fail, whoever makes them. A client
that gives up comes back, as a person would. One process is the client of all runs; its memory is
looked at after each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from record import record

BUCKET = "soak"
STEPS = 3
TRAINER = """
import json, os, urllib.request

def post(path, **body):
    url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}"
    data = json.dumps({"run_id": os.environ["MLFLOW_RUN_ID"], **body}).encode()
    headers = {"Content-Type": "application/json"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30).close()

for step in range(1, %d + 1):
    post("runs/log-metric", key="loss", value=1 / step, timestamp=1764000000000 + step, step=step)
    print("step", step, flush=True)
"""
#: What a call may meet: none of it is the last word.
ANSWERS = [
    *["unavailable", "too_many_requests", "internal_error", "bad_gateway"],
    *["reply_lost_before", "reply_lost_after"],
]
OPERATIONS = ["operation_fails", "operation_slow"]
PARAMETERS = {
    "gce.zones": "[europe-west1-b,europe-west4-a]",
    "gce.ssh.via": "none",
    "gce.system_metrics": "0",
}
_TIMES_BACK = 3  # a client that gave up comes back
_LEAVE_SECONDS = 120.0  # for instances whose clients have given up


def main() -> None:
    options = _options()
    if options.client:
        _be_the_client(options)
        return
    from gce_backend.emulator import Emulator

    with tempfile.TemporaryDirectory(prefix="soak-") as home, Emulator(boot_seconds=0.1) as cloud:
        cloud.create_bucket(BUCKET)
        _make_project(Path(home))
        started = time.monotonic()
        with Trouble(cloud, options.faults / 100, options.seed) as trouble:
            told = [json.loads(line) for line in _client(cloud, Path(home), options)]
        _wait_until_empty(cloud)
        seconds = time.monotonic() - started
        left = [str(each["name"]) for each in cloud.instances()]
        print(f"{len(told)} runs in {seconds:.0f} s, {_cpu():.0f} s CPU in all")
        for error in (error for each in told for error in each["errors"]):
            print(f"came back after: {error[:200]}")
        lost = [each for each in told if each["lost"]]
        for each in lost:
            print(f"LOST {each['run']}: {'; '.join(each['lost'])}")
        record("Soak", _summary(options, told, trouble, len(cloud.calls), left))
    sys.exit(1 if left or lost else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="one after another")
    parser.add_argument("--at-once", type=int, default=50, help="more, all at once")
    parser.add_argument("--faults", type=float, default=5.0, help="per cent of all API calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _make_project(home: Path) -> None:
    project = home / "project"
    project.mkdir()
    (project / "train.py").write_text(TRAINER % STEPS)
    command = "python train.py && echo done > result.txt"
    entry = f'name: soak\nentry_points:\n  main:\n    command: "{command}"\n'
    (project / "MLproject").write_text(entry)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _client(cloud: Any, home: Path, options: argparse.Namespace) -> Iterator[str]:
    """The lines that the client prints: one for each run."""
    environ = {
        **os.environ,
        **cloud.env,
        "MLFLOW_GCE_BUCKET": BUCKET,
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_GCE_GLANCE": "false",
        "XDG_STATE_HOME": str(home / "state"),
    }
    words = [f"--runs={options.runs}", f"--at-once={options.at_once}", "--client"]
    with (home / "client.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, *words],
            cwd=home / "project",
            env=environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        yield from process.stdout
        if process.wait():
            print((home / "client.log").read_text()[-4000:], file=sys.stderr)


class Trouble:
    """Faults while its block runs: each call meets one with a given probability.

    A fault is set and meets the next call there is, so how many are set follows how many calls
    come in.
    """

    def __init__(self, cloud: Any, share: float, seed: int) -> None:
        self._cloud = cloud
        self._share = share
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._strike, daemon=True)
        self.struck: Counter[str] = Counter()

    def __enter__(self) -> Trouble:
        if self._share > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._cloud.clear_faults()

    def _strike(self) -> None:
        seen = 0
        while not self._over.wait(0.02):
            count = len(self._cloud.calls)
            for _ in range(seen, count):
                if self._random.random() < self._share:
                    self._set_one()
            seen = count

    def _set_one(self) -> None:
        from gce_backend.emulator import Fault

        kind = self._random.choice([*ANSWERS, *ANSWERS, *OPERATIONS])
        method = "instances.*" if kind in OPERATIONS else "*"
        self._cloud.inject(Fault(kind, method, seconds=1.0))
        self.struck[kind] += 1


def _wait_until_empty(cloud: Any) -> None:
    end = time.monotonic() + _LEAVE_SECONDS
    while cloud.instances() and time.monotonic() < end:
        time.sleep(0.5)


def _summary(
    options: argparse.Namespace,
    told: list[dict[str, Any]],
    trouble: Trouble,
    calls: int,
    left: list[str],
) -> str:
    ends = Counter(str(each["end"]) for each in told)
    lost = sum(1 for each in told if each["lost"])
    back = sum(1 for each in told if each["errors"])
    alone = [each["megabytes"] for each in told if not each["at_once"]]
    quarter = max(1, len(alone) // 4)
    memory = ""
    if alone:
        first, last = sum(alone[:quarter]) / quarter, sum(alone[-quarter:]) / quarter
        memory = f"| client's memory, first quarter and last | {first:.0f} MB, {last:.0f} MB |\n"
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(trouble.struck.items()))
    return (
        f"{options.runs} runs one after another, then {options.at_once} at once; "
        f"{sum(trouble.struck.values())} faults among {calls} API calls ({kinds}).\n\n"
        "| | |\n|---|---|\n"
        f"| instances leaked | {len(left)} |\n| runs with anything lost | {lost} |\n"
        f"| ends | {', '.join(f'{end} {count}' for end, count in sorted(ends.items()))} |\n"
        f"| runs whose client gave up and came back | {back} |\n{memory}"
    )


# ---------------------------------------------------------------------- the client's process


def _be_the_client(options: argparse.Namespace) -> None:
    for _ in range(options.runs):
        _tell(_one_run(), at_once=False)
    with ThreadPoolExecutor(max(1, options.at_once)) as pool:
        for told in pool.map(lambda _: _one_run(), range(options.at_once)):
            _tell(told, at_once=True)


def _tell(told: dict[str, Any], *, at_once: bool) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    megabytes = pages * resource.getpagesize() / 2**20
    print(json.dumps({**told, "at_once": at_once, "megabytes": megabytes}), flush=True)


def _one_run() -> dict[str, Any]:
    """Submit a run, follow it to its end, come back when that breaks off; what became of it."""
    from gce_backend.backend import GceSubmittedRun
    from gce_backend.console import Console
    from gce_backend.errors import GceBackendError
    from gce_backend.interrupts import Interrupts
    from gce_backend.submit import Order, submit

    uri = os.environ["MLFLOW_TRACKING_URI"]
    order = Order(".", "main", uri, "0", PARAMETERS, env_manager="local")
    quiet, nobody = Console(quiet=True, err=sys.stderr), Interrupts(active=False)
    errors: list[str] = []
    try:
        submission, settings = submit(order, quiet, nobody)
    except GceBackendError as error:
        return {"run": "", "end": "not submitted", "lost": [], "errors": [str(error)]}
    for _ in range(1 + _TIMES_BACK):
        runner = GceSubmittedRun(submission, settings.endpoints, settings).runner(quiet)
        try:
            runner.follow(nobody)
            break
        except GceBackendError as error:
            errors.append(f"{type(error).__name__}: {error}")
            submission = runner.submission
    end, lost = _looked_at(runner.submission)
    return {"run": submission.run_id, "end": end, "lost": lost, "errors": errors}


def _looked_at(submission: Any) -> tuple[str, list[str]]:
    """How MLflow says that a run ended, and what of its results is not there."""
    from mlflow.tracking import MlflowClient

    from gce_backend.storage import Storage
    from gce_backend.tracking import END_REASON_TAG

    client, storage = MlflowClient(), Storage(submission.bucket, project=submission.project)
    run = client.get_run(submission.run_id)
    end = str(run.data.tags.get(END_REASON_TAG, run.info.status))
    manifest = storage.read_json(submission.paths.manifest)
    lost = storage.verify(manifest) if manifest else []
    if end == "succeeded":
        steps = [point.step for point in client.get_metric_history(submission.run_id, "loss")]
        if steps != list(range(1, STEPS + 1)):
            lost.append(f"metric: steps {steps}")
    elif run.info.status not in ("FINISHED", "FAILED", "KILLED"):
        lost.append(f"not ended: {run.info.status}")
    return end, lost


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
