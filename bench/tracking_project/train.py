"""The training that bench/tracking.py sends to an instance; it prints what it measured."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
import mlflow
import numpy as np
from mlflow.tracking import MlflowClient

DIRECT, CONTROL, STEPS = json.loads(Path("bench.json").read_text())


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


def timed(store, run_id, key, step, synchronous=True):
    value = compute()
    started = time.perf_counter()
    store.log_metric(run_id, key, value, step=step, synchronous=synchronous)
    return 1000 * (time.perf_counter() - started)


nobody = subprocess.Popen([sys.executable, "nobody.py"], stdout=subprocess.PIPE, text=True)
empty = client("http://127.0.0.1:" + nobody.stdout.readline().strip(), token)

near = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["MLFLOW_TRACKING_URI"]).netloc)


def bare(step):
    body = {"run_id": run, "key": "bare", "value": compute(), "timestamp": step, "step": step}
    started = time.perf_counter()
    headers = {"Authorization": "Bearer " + token}
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
    timed(empty, run, "warm", step)
calls = {way: [] for way in ("relay", "straight", "nobody", "bare", "asynchronous")}
for step in range(STEPS):
    calls["relay"].append(timed(relay, run, "one", step))
    calls["straight"].append(timed(straight, other, "one", step))
    calls["nobody"].append(timed(empty, run, "one", step))
    calls["bare"].append(bare(step))
for step in range(STEPS):
    calls["asynchronous"].append(timed(relay, run, "two", step, synchronous=False))
mlflow.flush_async_logging()
nobody.kill()
whole = {"silent": [], "relay": [], "straight": [], "down": []}
for turn in range(3):
    whole["silent"].append(training(None, "", ""))
    whole["relay"].append(training(relay, run, f"up{turn}"))
    tell("down")
    whole["down"].append(training(relay, run, f"down{turn}"))
    tell("up")
whole["straight"].append(training(straight, other, "whole"))
print("RESULT " + json.dumps([calls, whole]), flush=True)
