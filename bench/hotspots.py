"""Where the client's and the agent's seconds go in one short run, by samples of their stacks.

    python bench/hotspots.py [--rate 200]

py-spy looks at both processes from outside; a sample counts when a thread holds the interpreter's
lock, so waiting does not. Time inside an import belongs to the package that was asked for, other
time to the innermost of our own functions. The emulator's instances are not isolated here, so that
their processes can be seen. Needs the right to trace processes.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from record import record

from gce_backend.emulator import Emulator

BUCKET = "hotspots"
SHOWN = 8
PROJECT = "name: hotspots\nentry_points:\n  main:\n    command: python train.py\n"
TRAINER = """
import time

import mlflow

with mlflow.start_run():
    for step in range(20):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
        time.sleep(0.1)
    mlflow.log_text("done", "result.txt")
"""
SPY = str(Path(sys.executable).with_name("py-spy"))
FRAME = re.compile(r"(?P<function>.+?) \((?P<file>[^()]*?)(:\d+)?\)$")
PACKAGE = re.compile(r"site-packages/(google/cloud/\w+|google/\w+|\w+)")
OURS = re.compile(r"(?:gce_backend|agent\.pyz)/(.+)$")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=int, default=200, help="samples a second")
    rate = parser.parse_args().rate
    with (
        tempfile.TemporaryDirectory(prefix="hotspots-") as name,
        Emulator(boot_seconds=0.1, isolated=False) as emulator,
    ):
        home = Path(name)
        emulator.create_bucket(BUCKET)
        _run(emulator, home, rate)  # makes the tables, brings the agent and uv to the bucket
        wall = _run(emulator, home, rate)
        parts = [
            _told("The client", home / "client.txt", rate),
            _told("The agent", home / "agent.txt", rate),
        ]
    head = f"One run of `mlflow run --backend gce` whose training takes 2 s: {wall:.1f} s in all."
    record("Where the seconds go", "\n\n".join([head, *parts]))


def _run(emulator: Emulator, home: Path, rate: int) -> float:
    """One run from start to end under the sampler; seconds."""
    project = home / "project"
    project.mkdir(exist_ok=True)
    (project / "MLproject").write_text(PROJECT)
    (project / "train.py").write_text(TRAINER)
    environ = {
        **os.environ,
        **emulator.env,
        "MLFLOW_GCE_BUCKET": BUCKET,
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_GCE_GLANCE": "false",
    }
    spy = [SPY, "record", "--format", "raw", "--full-filenames", "--gil"]
    spy += ["--rate", str(rate)]
    watching = threading.Thread(target=_watch_agent, args=([*spy, "-o", str(home / "agent.txt")],))
    watching.start()
    started = time.monotonic()
    words = ["-m", "mlflow", "run", str(project), "--backend", "gce"]
    client = [*spy, "-o", str(home / "client.txt"), "--", sys.executable, *words]
    done = subprocess.run(client, env=environ, capture_output=True, text=True)
    watching.join(60)
    if done.returncode or not (home / "agent.txt").exists():
        sys.exit(f"no samples (exit code {done.returncode}): {done.stderr[-2000:]}")
    return time.monotonic() - started


def _watch_agent(spy: list[str]) -> None:
    """Sample the next agent that starts on this machine, to its end."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended
            if len(words) > 2 and words[1] == b"-I" and words[2].endswith(b"/agent.pyz"):
                watcher = subprocess.Popen(
                    [*spy, "--pid", process.name],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                try:
                    watcher.wait(60)
                except subprocess.TimeoutExpired:
                    watcher.send_signal(signal.SIGINT)
                    watcher.wait(10)
                return
        time.sleep(0.01)


def _told(who: str, samples: Path, rate: int) -> str:
    spent: Counter[str] = Counter()
    for line in samples.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        spent[_what(stack.split(";"))] += int(count)
    total = sum(spent.values())
    rows = [
        f"| {what} | {count / rate:.2f} | {100 * count / total:.0f} % |"
        for what, count in spent.most_common(SHOWN)
    ]
    head = f"| {who}: {total / rate:.1f} s of work | seconds | share |"
    return "\n".join([head, "|---|---|---|", *rows])


def _what(stack: list[str]) -> str:
    """What a sample belongs to; the outermost frame comes first."""
    frames = [found for frame in stack if (found := FRAME.match(frame))]
    importing = False
    for frame in frames:
        importing = importing or frame["function"].startswith("_find_and_load")
        package = PACKAGE.search(frame["file"])
        if importing and package and frame["function"] == "<module>":
            return f"importing {package[1].replace('/', '.')}"
    if importing:
        return "importing Python's own and this project's modules"
    for frame in reversed(frames):
        if ours := OURS.search(frame["file"]):
            return f"`{ours[1]}`: {frame['function']}"
    return "MLflow's and Python's own"


if __name__ == "__main__":
    main()
