"""A sweep of many small jobs on the emulator, with faults: wall time against the ideal, and leaks.

    python bench/sweep.py                                  # 200 jobs, 64 at a time, 10 s boot
    python bench/sweep.py --jobs 24 --parallel 8 --boot 2

The ideal: rounds of boot, plus the CPU time of all jobs, on the cores that others leave. What a job
costs is measured first, with a few jobs one after another: its instance's processes and the
emulator's work for it, without the client's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow.tracking import MlflowClient
from record import Figures, Say

from gce_backend.emulator import Emulator, Fault

PROGRAM = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    return float(cfg.x)

if __name__ == "__main__":
    main()
"""
PREEMPTION = "preemption"
#: What a fleet meets: no room, an API that stumbles, a lost reply, an instance taken back.
KINDS = ("no_capacity", "unavailable", "reply_lost_after", "operation_fails", PREEMPTION)


ALONE = 3  # jobs that are measured, one after another


def main() -> None:
    options = _options()
    with (
        tempfile.TemporaryDirectory(prefix="sweep-bench-") as home,
        _cpu_account() as cpu,
        Figures("A sweep of many jobs", "hydra-core") as figures,
    ):
        say = figures.say
        project = Path(home, "project")
        project.mkdir()
        (project / "app.py").write_text(PROGRAM)
        with Emulator(boot_seconds=0.1) as emulator:
            before = cpu()
            usage = _sweep(emulator, project, ALONE, 1)
            one = (cpu() - before - usage.cpu) / ALONE
            say(f"{ALONE} jobs alone: {usage.wall:.1f} s, {one:.2f} s CPU each besides the client")
        shutil.rmtree(project / "out", ignore_errors=True)
        (project / "mlflow.db").unlink()
        with Emulator(boot_seconds=options.boot) as emulator:
            number = round(options.jobs * options.faults / 100)
            before, all_before = cpu(), _cpu_of_this_machine()
            with Trouble(emulator, number, _ideal(options, one, _cores())) as trouble:
                usage = _sweep(emulator, project, options.jobs, options.parallel)
            own = cpu() - before
            others = max(0.0, _cpu_of_this_machine() - all_before - own) / usage.wall
            _report(options, one, usage, _cores() - others, say)
            say(f"all CPU: {own:.0f} s, others used {others:.2f} cores meanwhile")
            say(f"faults: {dict(trouble.struck)}")
            _check(emulator, project, options.jobs, say)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=64)
    parser.add_argument("--boot", type=float, default=10.0, help="seconds")
    parser.add_argument("--faults", type=float, default=5.0, help="per cent of the jobs")
    return parser.parse_args()


class Usage:
    """Of one run of the client: seconds of wall and CPU, and its largest resident size in MB."""

    def __init__(self, wall: float, cpu: float, megabytes: float) -> None:
        self.wall, self.cpu, self.megabytes = wall, cpu, megabytes


def _sweep(emulator: Emulator, project: Path, jobs: int, parallel: int) -> Usage:
    bucket = "sweep-bench"
    emulator.create_bucket(bucket)
    environ = {
        **os.environ,
        **emulator.env,
        "MLFLOW_GCE_BUCKET": bucket,
        "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    words = ["-m", "hydra/launcher=gce", "hydra.sweep.dir=out", f"+x=range({jobs})"]
    words.append(f"hydra.launcher.gce={{max_parallel:{parallel}}}")
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "app.py", *words],
        cwd=project,
        env=environ,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        print(f"the client ended with exit code {process.returncode}")
    cpu = used.ru_utime + used.ru_stime
    return Usage(time.monotonic() - started, cpu, used.ru_maxrss / 1024)


@contextlib.contextmanager
def _cpu_account() -> Iterator[Callable[[], float]]:
    """CPU seconds of this process and all that come from it; of the whole machine at worst.

    The processes of an instance end with its namespaces, so no parent's ``getrusage`` has them.
    """
    groups = Path("/sys/fs/cgroup/cpuacct")
    if not os.access(groups, os.W_OK):
        yield _cpu_of_this_machine
        return
    group = groups / f"sweep-bench-{os.getpid()}"
    group.mkdir()
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield lambda: int((group / "cpuacct.usage").read_text()) / 1e9
    finally:
        (groups / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):  # something of it still ends
            group.rmdir()


def _cpu_of_this_machine() -> float:
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split()[1:8]
    ticks = sum(map(int, (user, nice, system, *interrupts)))
    return ticks / os.sysconf("SC_CLK_TCK")


class Trouble:
    """Faults at random moments while its block runs, so many as were asked for."""

    def __init__(self, emulator: Emulator, number: int, seconds: float) -> None:
        self._emulator = emulator
        draw = random.Random(0)
        kinds = draw.choices(KINDS, k=number)
        times = sorted(draw.uniform(0, seconds) for _ in range(number))
        self._planned = list(zip(times, kinds, strict=True))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._strike, daemon=True)
        self.struck: Counter[str] = Counter()

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _strike(self) -> None:
        started = time.monotonic()
        for at, kind in self._planned:
            if self._over.wait(max(0.0, started + at - time.monotonic())):
                return
            if kind != PREEMPTION:
                self._emulator.inject(Fault(kind))
            elif running := [i for i in self._emulator.instances() if i["status"] == "RUNNING"]:
                with contextlib.suppress(LookupError):  # it has ended in this very moment
                    self._emulator.preempt(random.choice(running)["name"])
            self.struck[kind] += 1


def _report(options: argparse.Namespace, one: float, usage: Usage, cores: float, say: Say) -> None:
    ideal = _ideal(options, one, cores)
    here = ideal + usage.cpu / cores
    say(
        f"{options.jobs} jobs, {options.parallel} at a time: {usage.wall:.0f} s; ideal "
        f"{ideal:.0f} s ({_rounds(options)} x {options.boot:g} s boot + {options.jobs} x "
        f"{one:.2f} s CPU on {cores:.2f} cores): {usage.wall / ideal:.2f} times (goal: 1.25)"
    )
    say(
        f"with the client's {usage.cpu:.0f} s CPU on the same cores, ideal {here:.0f} s: "
        f"{usage.wall / here:.2f} times"
    )
    say(
        f"client: {usage.megabytes:.0f} MB, {usage.cpu / usage.wall:.2f} cores on average "
        "(goals: 600 MB, 1)"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _rounds(options: argparse.Namespace) -> int:
    return int(-(-options.jobs // options.parallel))


def _ideal(options: argparse.Namespace, one: float, cores: float) -> float:
    return float(_rounds(options) * options.boot + options.jobs * one / cores)


def _check(emulator: Emulator, project: Path, jobs: int, say: Say) -> None:
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=5000)
    finished = [r for r in runs if r.info.status == "FINISHED" and "gce.sweep.job" in r.data.tags]
    files = len(list((project / "out").glob("*/.hydra/config.yaml")))
    say(
        f"instances left: {len(list(emulator.instances()))}; finished child runs: "
        f"{len(finished)} of {jobs}; output directories: {files} of {jobs}"
    )


if __name__ == "__main__":
    main()
