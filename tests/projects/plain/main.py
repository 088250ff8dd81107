"""A trainer that knows MLflow and nothing else: logs steps, keeps a checkpoint, ends as told."""

import sys
import time
from pathlib import Path

import mlflow

steps, pause, exit_code = (float(word) for word in sys.argv[1:4])

with mlflow.start_run():
    mlflow.log_param("pause", pause)
    for step in range(1, int(steps) + 1):
        mlflow.log_metric("loss", 1 / step, step=step)
        print(f"step {step} of {int(steps)}", flush=True)
        Path("checkpoint.txt").write_text(str(step))
        mlflow.log_artifact("checkpoint.txt")
        time.sleep(pause)
    if exit_code:
        raise RuntimeError("this trainer was told to fail")
    mlflow.log_text("done\n", "result.txt")
