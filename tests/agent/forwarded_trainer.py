"""A trainer in plain HTTP that writes one of everything, in three parts that a test paces."""

import json
import os
import pathlib
import time
import urllib.error
import urllib.request

URI, TOKEN = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_TOKEN"]
RUN, EXPERIMENT = os.environ["MLFLOW_RUN_ID"], os.environ["MLFLOW_EXPERIMENT_ID"]


def send(method, path, data):
    request = urllib.request.Request(URI + path, data=data, method=method)
    request.add_header("Authorization", "Bearer " + TOKEN)
    for _ in range(400):  # the relay is away while the agent is
        try:
            return json.loads(urllib.request.urlopen(request, timeout=10).read())
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the relay stayed away")


def call(path, method="POST", **body):
    return send(method, "/api/2.0/mlflow/" + path, json.dumps(body).encode())


def put(uri, name, data):
    path = uri.removeprefix("mlflow-artifacts:/")
    send("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}/{name}", data)


def metric(key, step, **more):
    point = {"key": key, "value": 1 / step, "timestamp": 1_764_000_000_000 + step, "step": step}
    call("runs/log-metric", **{"run_id": RUN, **point, **more})


def wait_for(name):
    until = time.monotonic() + 60
    while not pathlib.Path(name).exists():
        if time.monotonic() > until:
            raise SystemExit(f"nobody said {name}")
        time.sleep(0.02)


def several_of_each():
    for step in range(1, 30):
        metric("loss", step)
    call("runs/log-parameter", run_id=RUN, key="lr", value="0.1")
    points = [{"key": "odd", "value": v, "timestamp": 5, "step": 1} for v in ("NaN", "-Infinity")]
    params = [{"key": f"p{i}", "value": "ü" * i} for i in range(80)]
    call("runs/log-batch", run_id=RUN, metrics=points, params=params)
    for value in ("1", "2"):
        call("runs/set-tag", run_id=RUN, key="a", value=value)
    call("runs/set-tag", run_id=RUN, key="gone", value="1")
    call("runs/delete-tag", run_id=RUN, key="gone")
    call("runs/update", run_id=RUN, run_name="renamed", status="FINISHED", end_time=7)
    call("experiments/set-experiment-tag", experiment_id=EXPERIMENT, key="k", value="v")
    dataset = {"name": "d", "digest": "1", "source_type": "t", "source": "s"}
    call("runs/log-inputs", run_id=RUN, datasets=[{"dataset": dataset}])
    # Poison: the relay lets it pass, the store does not take it.
    call("runs/log-inputs", run_id=RUN, datasets=[{"dataset": {**dataset, "name": "d" * 600}}])


def a_child():
    tags = [{"key": "mlflow.parentRunId", "value": RUN}]
    child = call("runs/create", experiment_id=EXPERIMENT, run_name="child", tags=tags)["run"]
    run_id = child["info"]["run_id"]
    metric("loss", 3, run_id=run_id)
    put(child["info"]["artifact_uri"], "child.txt", run_id.encode())
    call("runs/update", run_id=run_id, status="FINISHED", end_time=1_764_000_009_000)
    call("runs/set-tag", run_id=RUN, key="best", value=run_id)


def a_model():
    body = {"experiment_id": EXPERIMENT, "name": "model", "source_run_id": RUN, "model_type": "t"}
    model = call("logged-models", **body, params=[{"key": "depth", "value": "3"}])["model"]["info"]
    model_id, uri = model["model_id"], model["artifact_uri"]
    put(uri, "MLmodel", f"artifact_path: {uri}\nmodel_id: {model_id}\n".encode())
    put(uri, "data/weights.bin", os.urandom(100_000))
    call("runs/outputs", run_id=RUN, models=[{"model_id": model_id, "step": 4}])
    metric("score", 4, model_id=model_id)
    call(
        f"logged-models/{model_id}/tags",
        "PATCH",
        model_id=model_id,
        tags=[{"key": "x", "value": "y"}],
    )
    call(f"logged-models/{model_id}", "PATCH", model_id=model_id, status="LOGGED_MODEL_READY")
    return model_id


several_of_each()
print("one", flush=True)
wait_for("two")
for step in range(30, 60):
    metric("loss", step)
a_child()
model_id = a_model()
print("two", flush=True)
wait_for("three")
metric("score", 5, model_id=model_id)
call("runs/set-tag", run_id=RUN, key="a", value="3")
print("three", flush=True)
