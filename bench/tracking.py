"""log_metric through the relay against straight to a server 50 ms away; and with the server down.

    python bench/tracking.py [--steps 200]

One training on an emulated instance measures all of it: call by call in turn, so that a busy
machine slows both, and then whole trainings in turn. The server is a real `mlflow server`, behind
a TCP proxy that adds 25 ms each way; the agent forwards the journal to it all the while. "Nobody"
is a server on loopback that answers a fixed text at once: what MLflow's client takes for itself,
below which no relay can get it.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from record import Figures

from gce_backend.emulator import Emulator
from gce_backend.emulator.ports import free_port

ONE_WAY_SECONDS = 0.025
MLFLOW = [sys.executable, "-m", "mlflow"]

PROJECT = Path(__file__).with_name("tracking_project")


class FarServer:
    """A TCP proxy in a thread: everything takes ONE_WAY_SECONDS longer; told to be down, and up."""

    def __init__(self, port: int, address: str) -> None:
        self._upstream, self.address = port, address
        self._pipes: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.port, self.control = asyncio.run_coroutine_threadsafe(
            self._start(), self._loop
        ).result(10)

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    async def _start(self) -> tuple[int, int]:
        self._server = await asyncio.start_server(self._connect, "0.0.0.0", 0)
        control = await asyncio.start_server(self._obey, "0.0.0.0", 0)
        return self._server.sockets[0].getsockname()[1], control.sockets[0].getsockname()[1]

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(4) == b"down":
            self._server.close()
            for pipe in list(self._pipes):
                pipe.transport.abort()
        else:
            self._server = await asyncio.start_server(self._connect, "0.0.0.0", self.port)
        writer.write(b".")
        await writer.drain()
        writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * ONE_WAY_SECONDS)  # the handshake's round trip
        back, forth = await asyncio.open_connection("127.0.0.1", self._upstream)
        ends = {writer, forth}
        self._pipes |= ends
        await asyncio.gather(_pump(reader, forth), _pump(back, writer), return_exceptions=True)
        self._pipes -= ends


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while data := await reader.read(65536):
            loop.call_later(ONE_WAY_SECONDS, writer.write, data)
    finally:
        loop.call_later(2 * ONE_WAY_SECONDS, writer.close)


def address_of_this_machine() -> str:
    """One that is not loopback: only to such a server an instance writes by itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def start_server(directory: Path) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    command = [*MLFLOW, "server", "--workers", "1", "--allowed-hosts", "*", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{directory / 'mlflow.db'}"]
    environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environ,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return process, port
        except OSError:
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            time.sleep(0.2)


def train(server: FarServer, emulator: Emulator, directory: Path, steps: int) -> str:
    """What the training printed."""
    project = directory / "project"
    shutil.copytree(PROJECT, project)
    settings = [server.url, [server.address, server.control], steps]
    (project / "bench.json").write_text(json.dumps(settings))
    emulator.create_bucket("bench")
    environ = {**os.environ, **emulator.env, "MLFLOW_GCE_BUCKET": "bench"}
    environ |= {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [*MLFLOW, "run", str(project), "-e", "train.py", "--backend", "gce"],
        cwd=directory,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    if done.returncode:
        sys.exit(done.stdout)
    return done.stdout


WAYS = {
    "relay": "through the relay",
    "straight": "straight to the server",
    "nobody": "MLflow's client alone, to a server that answers at once",
    "bare": "the relay alone, without MLflow's client",
    "asynchronous": "through the relay, synchronous=False",
}


def report(calls: dict[str, list[float]], whole: dict[str, list[float]], steps: int) -> None:
    """Goals: 99 % of calls under 2 ms, 20 times faster; no slowdown while the server is down."""
    ordered = {way: sorted(times) for way, times in calls.items()}
    median = {way: times[len(times) // 2] for way, times in ordered.items()}
    late = {way: times[len(times) * 99 // 100] for way, times in ordered.items()}
    best = {way: min(seconds) for way, seconds in whole.items()}
    with Figures("log_metric, the server 50 ms away") as figures:
        for way, words in WAYS.items():
            figures.say(f"{words}: median {median[way]:.2f} ms, p99 {late[way]:.2f} ms")
        figures.say(
            f"straight / relay: median {median['straight'] / median['relay']:.0f} times, "
            f"p99 {late['straight'] / late['relay']:.0f} times (goals: p99 under 2 ms, 20 times; "
            "below what MLflow's client takes for itself nothing can get)"
        )
        own = {way: median[way] - median["nobody"] for way in ("relay", "straight")}
        figures.say(
            f"beyond what MLflow's client takes for itself, medians: relay {own['relay']:.2f} ms, "
            f"straight {own['straight']:.2f} ms"
        )
        figures.say(
            f"training of {steps} steps: {best['silent']:.2f} s without logging, "
            f"{best['relay']:.2f} s through the relay, {best['straight']:.2f} s straight"
        )
        figures.say(
            f"with the server down, through the relay: {best['down']:.2f} s "
            f"(ratio to undisturbed {best['down'] / best['relay']:.2f}, goal: 1)"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as scratch, Emulator(boot_seconds=0.1) as emulator:
        directory = Path(scratch)
        process, port = start_server(directory)
        try:
            output = train(FarServer(port, address_of_this_machine()), emulator, directory, steps)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    line = next(line for line in output.splitlines() if "RESULT " in line)
    calls, whole = json.loads(line.partition("RESULT ")[2])
    report(calls, whole, steps)


if __name__ == "__main__":
    main()
