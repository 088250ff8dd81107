"""Logs a little of everything, always the same; waits at some steps until it is let through."""

import sys
import urllib.request

import matplotlib.figure
import mlflow
import numpy as np

PORT = int(float(sys.argv[1]))
STEPS, HELD = 12, (1, 4, 8, 12)
TIME = 1_764_000_000_000


def wait_at(step):
    if PORT and step in HELD:
        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/{step}", timeout=250).read()


with mlflow.start_run():
    mlflow.log_params({"lr": 0.1, "text": "a 'b' \"c\" ü", "empty": ""})
    data = mlflow.data.from_numpy(np.arange(6).reshape(2, 3), name="six")
    mlflow.log_input(data, context="training")
    for step in range(1, STEPS + 1):
        wait_at(step)
        points = {"loss": 1 / step, "nan": float("nan"), "accuracy": 100.0 - step}
        mlflow.log_metrics(points, step=step, timestamp=TIME + step)
        mlflow.log_metric("twice", step, step=step // 2, timestamp=TIME + step)
        mlflow.set_tag("step", step)
        if step % 3 == 0:
            mlflow.log_text(f"step {step}\n", f"notes/{step}.txt")
            mlflow.delete_tag("step")
        print(f"step {step} of {STEPS}", flush=True)
    figure = matplotlib.figure.Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    mlflow.log_figure(figure, "figure.png")
    model = mlflow.pyfunc.log_model(
        name="model", python_model=lambda model_input: model_input, pip_requirements=["mlflow"]
    )
    mlflow.log_metric("score", 0.5, step=1, timestamp=TIME, model_id=model.model_id)
    mlflow.set_tag("best", model.model_id)
    for name in ("child 1", "child 2"):
        with mlflow.start_run(nested=True, run_name=name):
            mlflow.log_param("c", name)
            mlflow.log_metric("cm", 2.0, step=1, timestamp=TIME)
            mlflow.log_text(name, "child.txt")
