"""The process around a job: starts it, and brings back what it left, however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

_SKIPPED = {".git", ".venv", "__pycache__", "mlruns", "venv", "node_modules"}
_SECONDS = 600.0


def supervise(archive: str, facts: dict[str, Any]) -> int:
    """Run the job of ``archive`` and hand in ``result.json`` and ``outputs.tar.gz``.

    Returns:
        The exit code of the run: 0 only when the task function returned.
    """
    # The whole process group is told to end: the job reacts, this process saves what it left.
    signal.signal(signal.SIGTERM, _ignore)
    root = Path(facts["here"])
    before = _files(root)
    with tempfile.TemporaryDirectory(prefix="mlflow-gce-") as scratch:
        result = Path(scratch) / "result.json"
        code = _run([sys.executable, archive, "job", str(result), str(root)], facts)
        outcome = _outcome(result, code)
        output = outcome.get("output_dir") or ""
        outputs = Path(scratch) / "outputs.tar.gz"
        _pack(outputs, root, before, Path(output) if output else None)
        hand_in = Relay()
        hand_in.put("hydra/outputs.tar.gz", outputs)
        result.write_text(json.dumps(outcome))
        hand_in.put("hydra/result.json", result)
    return 0 if outcome["status"] == "COMPLETED" else (code or 1)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass


def _run(command: list[str], facts: dict[str, Any]) -> int:
    directory = Path(facts["cwd"])
    where = directory if directory.is_dir() else Path.cwd()
    code = subprocess.call(command, cwd=where)
    return 128 - code if code < 0 else code


def _outcome(result: Path, code: int) -> dict[str, Any]:
    """What the job wrote, or what its exit code alone tells."""
    try:
        outcome: dict[str, Any] = json.loads(result.read_text())
    except FileNotFoundError:
        return {"status": "FAILED", "error": None, "exit_code": code}
    if outcome["status"] == "STARTED":  # its directory is known, and no more
        return {**outcome, "status": "FAILED", "error": None, "exit_code": code}
    return {**outcome, "exit_code": code}


def _files(root: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time (ns) of each file below ``root``, caches left out."""
    found = {}
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED)
        for name in files:
            path = Path(directory, name)
            if not path.is_symlink() and path.is_file():
                status = path.stat()
                found[str(path.relative_to(root))] = (status.st_size, status.st_mtime_ns)
    return found


def _pack(
    target: Path, root: Path, before: dict[str, tuple[int, int]], output: Path | None
) -> None:
    """The job's output directory, and under ``project/`` what else it wrote there."""
    with tarfile.open(target, "w:gz", compresslevel=1) as tar:
        if output is not None and output.is_dir():
            tar.add(output, "output")
        for name, mark in _files(root).items():
            inside = output is not None and (root / name).is_relative_to(output)
            if before.get(name) != mark and not inside:
                tar.add(root / name, f"project/{name}")


class Relay:
    """MLflow's artifact protocol, spoken to the relay on the instance."""

    def __init__(self) -> None:
        self._url = os.environ["MLFLOW_TRACKING_URI"]
        self._token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
        run = self._get(f"mlflow/runs/get?run_id={os.environ['MLFLOW_RUN_ID']}")["run"]
        self._root = run["info"]["artifact_uri"].partition(":")[2].strip("/")

    def put(self, name: str, source: Path) -> None:
        """Upload ``source`` as the run's artifact ``name``; tried for ten minutes."""
        url = f"{self._url}/api/2.0/mlflow-artifacts/artifacts/{self._root}/{name}"
        self._ask(url, source)

    def _get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._ask(f"{self._url}/api/2.0/{path}"))
        return answer

    def _ask(self, url: str, source: Path | None = None) -> bytes:
        until = time.monotonic() + _SECONDS
        while True:
            try:
                return self._once(url, source)
            except OSError:  # the agent is being started again
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def _once(self, url: str, source: Path | None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"}
        if source is None:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bytes(answer.read())
        headers["Content-Length"] = str(source.stat().st_size)
        with source.open("rb") as data:
            request = urllib.request.Request(url, data=data, headers=headers, method="PUT")
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return bytes(answer.read())
