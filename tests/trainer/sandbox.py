"""train.py as a user starts it: a process of its own, in a directory that is thrown away."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from trainer_copy import copy_trainer

FAST = ("data=digits", "model=mlp")


@dataclass
class Sandbox:
    """A copy of the project's training side, with an MLflow store of its own."""

    root: Path

    @classmethod
    def make(cls, directory: Path) -> "Sandbox":
        copy_trainer(directory)
        return cls(directory)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.root}/mlflow.db")

    def runs(self) -> list[Run]:
        return list(self.client.search_runs(["0"], order_by=["attributes.start_time"]))

    def artifact(self, run: Run, path: str) -> Path:
        return Path(self.client.download_artifacts(run.info.run_id, path))

    def start(
        self, *command: str, code: int = 0, seconds: float = 280, **env: str
    ) -> subprocess.CompletedProcess[str]:
        bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**inherited, "PATH": bin_first, "PYTHONDONTWRITEBYTECODE": "1", **env},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def train(self, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        return self.start(sys.executable, "train.py", *words, code=code, **env)
