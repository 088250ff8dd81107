"""log_metric through the relay against straight to a server 50 ms away; and with the server down.

    python bench/tracking.py [--steps 200]

One training on an emulated instance measures all of it: call by call in turn, so that a busy
machine slows both, and then whole trainings in turn. The server is a real `mlflow server`, behind
a TCP proxy that adds 25 ms each way; the agent forwards the journal to it all the while.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from gce_backend.emulator import Emulator

ONE_WAY_SECONDS = 0.025
MLFLOW = [sys.executable, "-m", "mlflow"]

TRAINER = """
import http.client, json, os, socket, time, urllib.parse
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
import mlflow, numpy as np
from mlflow.tracking import MlflowClient

DIRECT, CONTROL, STEPS = {direct!r}, {control!r}, {steps}

def tell(word):
    with socket.create_connection(tuple(CONTROL), timeout=10) as connection:
        connection.sendall(word.encode())
        connection.recv(1)

def client(uri, token):
    if token is None:
        os.environ.pop("MLFLOW_TRACKING_TOKEN", None)
    else:
        os.environ["MLFLOW_TRACKING_TOKEN"] = token
    return MlflowClient(uri)

token = os.environ["MLFLOW_TRACKING_TOKEN"]
relay, straight = client(os.environ["MLFLOW_TRACKING_URI"], token), MlflowClient(DIRECT)
run = os.environ["MLFLOW_RUN_ID"]
other = straight.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
a = np.random.default_rng(0).normal(size=(200, 200))

def compute():
    b = a
    for _ in range(5):
        b = np.tanh(b @ a)
    return float(b.mean())

def timed(store, run_id, key, step):
    value = compute()
    started = time.perf_counter()
    store.log_metric(run_id, key, value, step=step, synchronous=True)
    return 1000 * (time.perf_counter() - started)

near = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["MLFLOW_TRACKING_URI"]).netloc)

def bare(step):
    body = {{"run_id": run, "key": "bare", "value": compute(), "timestamp": step, "step": step}}
    started = time.perf_counter()
    headers = {{"Authorization": "Bearer " + token}}
    near.request("POST", "/api/2.0/mlflow/runs/log-metric", json.dumps(body), headers)
    assert near.getresponse().read()
    return 1000 * (time.perf_counter() - started)

def training(store, run_id, key):
    started = time.perf_counter()
    for step in range(STEPS):
        value = compute()
        if store is not None:
            store.log_metric(run_id, key, value, step=step, synchronous=True)
    return time.perf_counter() - started

for step in range(10):
    timed(relay, run, "warm", step), timed(straight, other, "warm", step)
calls = {{"relay": [], "straight": [], "relay, without MLflow's client": []}}
for step in range(STEPS):
    calls["relay"].append(timed(relay, run, "one", step))
    calls["straight"].append(timed(straight, other, "one", step))
    calls["relay, without MLflow's client"].append(bare(step))
whole = {{"silent": [], "relay": [], "straight": [], "down": []}}
for turn in range(3):
    whole["silent"].append(training(None, "", ""))
    whole["relay"].append(training(relay, run, f"up{{turn}}"))
    tell("down")
    whole["down"].append(training(relay, run, f"down{{turn}}"))
    tell("up")
whole["straight"].append(training(straight, other, "whole"))
print("RESULT " + json.dumps([calls, whole]), flush=True)
"""


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
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
    project.mkdir()
    control = [server.address, server.control]
    text = TRAINER.format(direct=server.url, control=control, steps=steps)
    (project / "train.py").write_text(text)
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


def report(calls: dict[str, list[float]], whole: dict[str, list[float]], steps: int) -> None:
    median, late = {}, {}
    for way, times in calls.items():
        ordered = sorted(times)
        median[way], late[way] = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
        print(f"log_metric, {way}: median {median[way]:.2f} ms, p99 {late[way]:.2f} ms")
    print(
        f"straight / relay: median {median['straight'] / median['relay']:.0f} times, "
        f"p99 {late['straight'] / late['relay']:.0f} times"
    )
    best = {way: min(seconds) for way, seconds in whole.items()}
    print(
        f"training of {steps} steps: {best['silent']:.2f} s without logging, {best['relay']:.2f} s "
        f"through the relay, {best['straight']:.2f} s straight"
    )
    print(
        f"with the server down, through the relay: {best['down']:.2f} s "
        f"(ratio to undisturbed {best['down'] / best['relay']:.2f})"
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
