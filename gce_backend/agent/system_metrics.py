"""CPU, memory, disk, network and GPUs, under MLflow's own names, for any trainer in any language.

Names and meaning as in ``mlflow/system_metrics/metrics`` (3.17.2), which needs psutil and pynvml
in the trainer's environment; here they come from ``/proc`` and ``nvidia-smi``. One difference: the
loopback interface does not count, since every artifact passes through it on its way out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

PREFIX = "system/"
_MIB = 1024 * 1024 / 1e6  # nvidia-smi counts in MiB, MLflow in 10^6 bytes
_GPU_FIELDS = "index,utilization.gpu,memory.used,memory.total,power.draw,enforced.power.limit"
_GPU_PATIENCE_S = 10.0


class Sampler:
    """``sample()`` gives what can be read now; CPU and network since the sample before.

    Args:
        proc: the proc file system; disk: a directory on the disk to look at.
    """

    def __init__(self, proc: Path = Path("/proc"), disk: str = os.sep) -> None:
        self._proc, self._disk = proc, disk
        self._nvidia_smi = shutil.which("nvidia-smi")
        self._unanswered: subprocess.Popen[str] | None = None
        self._cpu = self._cpu_times()
        self._network = self._network_bytes()

    def sample(self, *, gpus: bool = True) -> dict[str, float]:
        """Values by their names in MLflow; what this machine does not tell is left out.

        Without ``gpus`` at once; a GPU nobody uses yet may take seconds to answer.
        """
        values: dict[str, float] = {}
        for read in (self._read_cpu, self._read_memory, self._read_disk, self._read_network):
            try:
                values.update(read())
            except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError):
                continue  # an unusual kernel must not cost the other values
        if gpus:
            values.update(self._read_gpus())
        return {f"{PREFIX}{name}": value for name, value in values.items()}

    def _read_cpu(self) -> dict[str, float]:
        before, self._cpu = self._cpu, self._cpu_times()
        if not self._cpu[1]:
            raise ValueError("no CPU times")
        busy, total = (now - then for now, then in zip(self._cpu, before, strict=True))
        return {"cpu_utilization_percentage": round(100 * busy / total, 1) if total else 0.0}

    def _read_memory(self) -> dict[str, float]:
        lines = (self._proc / "meminfo").read_text().splitlines()
        kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
        used = (kib["MemTotal"] - kib["MemAvailable"]) * 1024
        return {
            "system_memory_usage_megabytes": round(used / 1e6, 1),
            "system_memory_usage_percentage": round(100 * used / (kib["MemTotal"] * 1024), 1),
        }

    def _read_disk(self) -> dict[str, float]:
        state = os.statvfs(self._disk)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        free = state.f_bavail * state.f_frsize
        return {
            "disk_usage_percentage": round(100 * used / (used + free), 1),
            "disk_usage_megabytes": round(used / 1e6, 1),
            "disk_available_megabytes": round(free / 1e6, 1),
        }

    def _read_network(self) -> dict[str, float]:
        received, sent = self._network_bytes()
        return {
            "network_receive_megabytes": (received - self._network[0]) / 1e6,
            "network_transmit_megabytes": (sent - self._network[1]) / 1e6,
        }

    def _read_gpus(self) -> dict[str, float]:
        try:
            lines = self._ask_gpus().splitlines()
        except (OSError, ValueError):
            return {}
        values: dict[str, float] = {}
        for line in lines:
            values.update(_gpu(line))
        return values

    def _ask_gpus(self) -> str:
        """nvidia-smi's answer. A driver that hangs keeps the program in the kernel, where no signal
        reaches it: it is not waited for, and no other is started before it has ended."""
        hangs = self._unanswered is not None and self._unanswered.poll() is None
        if self._nvidia_smi is None or hangs:
            return ""
        process = subprocess.Popen(
            [self._nvidia_smi, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._unanswered = process
        try:
            return process.communicate(timeout=_GPU_PATIENCE_S)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return ""
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def _cpu_times(self) -> tuple[float, float]:
        """Ticks that were worked, and all ticks: proc_stat(5). Guests are part of user and nice."""
        try:
            fields = [int(word) for word in self._first_line("stat").split()[1:9]]
        except (OSError, ValueError):
            return 0.0, 0.0
        idle = sum(fields[3:5])  # idle and iowait
        return float(sum(fields) - idle), float(sum(fields))

    def _network_bytes(self) -> tuple[int, int]:
        received = sent = 0
        try:
            for line in (self._proc / "net" / "dev").read_text().splitlines()[2:]:
                name, _, numbers = line.partition(":")
                if name.strip() != "lo":
                    fields = numbers.split()
                    received, sent = received + int(fields[0]), sent + int(fields[8])
        except (OSError, ValueError, IndexError):
            return 0, 0
        return received, sent

    def _first_line(self, name: str) -> str:
        with (self._proc / name).open() as file:
            return file.readline()


class SystemMetrics:
    """A thread that samples every ``interval`` seconds and gives it to ``write``.

    Args:
        write: takes (values, step); an OSError of it (a full disk) costs that sample.
        first_step: one past the last step of an earlier attempt.
        hurries: whether there is no time for a last sample.
    """

    def __init__(
        self,
        sampler: Sampler,
        write: Callable[[dict[str, float], int], None],
        interval: float,
        first_step: int = 0,
        hurries: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sampler, self._write = sampler, write
        self._interval, self._step, self._hurries = interval, first_step, hurries
        self._over = threading.Event()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name="system-metrics")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End with a last sample, so that a short training has one too; but wait for none."""
        self._over.set()
        self._thread.join(0 if self._hurries() else _GPU_PATIENCE_S + 5)
        if self._hurries() or self._thread.is_alive():
            return
        if time.monotonic() - self._last > min(1.0, self._interval):
            self._take()

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            self._take()

    def _take(self) -> None:
        try:
            self._write(self._sampler.sample(), self._step)
            self._step += 1
        except OSError:
            pass
        self._last = time.monotonic()


def _gpu(line: str) -> dict[str, float]:
    """One line of nvidia-smi's CSV; "[N/A]" stands for what a GPU does not tell."""
    index, *fields = (field.strip() for field in line.split(","))
    numbers = [_number(field) for field in fields]
    if not index.isdigit() or len(numbers) != 5:
        return {}
    busy, used, total, power, limit = numbers
    found = {
        "utilization_percentage": busy,
        "memory_usage_percentage": _percent(used, total),
        "memory_usage_megabytes": None if used is None else round(used * _MIB, 1),
        "power_usage_watts": power,
        "power_usage_percentage": _percent(power, limit),
    }
    return {f"gpu_{index}_{name}": value for name, value in found.items() if value is not None}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _percent(part: float | None, whole: float | None) -> float | None:
    return round(100 * part / whole, 1) if part is not None and whole else None
