"""An instance as the agent's tests see it: a spec and a bundle in the bucket, a directory, and
the agent as the startup script starts it: from a zip, by whichever Python."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

from gce_backend.agent.paths import CANCEL_ATTRIBUTE, SPEC_ATTRIBUTE, RunPaths

from .cloud import Bucket, ControlPlane, wait_for

AGENT = Path(__file__).resolve().parents[2] / "gce_backend" / "agent"
RUN_ID = "0123456789abcdef0123456789abcdef"
EXPERIMENT_ID = "7"


def build_zip(target: Path) -> Path:
    """What the client ships: the folder as package ``agent``, with a door at the root."""
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(AGENT.rglob("*.py")):
            archive.write(file, f"agent/{file.relative_to(AGENT)}")
        archive.writestr("__main__.py", "from agent.main import main\nmain()\n")
    return target


def tarball(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


class TestInstance:
    """One run's attempt on one directory; ``start`` again is a restart of the agent."""

    __test__ = False

    def __init__(self, root: Path, agent: Path, bucket: Bucket, plane: ControlPlane) -> None:
        self.root, self._agent, self.bucket, self.plane = root, agent, bucket, plane
        self.paths = RunPaths("mlflow-gce", RUN_ID)
        self.location = f"gs://{bucket.name}/mlflow-gce/experiments/digits"
        self.artifacts = f"mlflow-gce/experiments/digits/{RUN_ID}/artifacts"
        self.process: subprocess.Popen[bytes] | None = None
        self.bin = root / "bin"  # first on the instance's PATH
        self.bin.mkdir(parents=True)
        self.stand_in("useradd", "echo 'not here' >&2; exit 1")
        self.stand_in("poweroff", f"touch {root}/powered_off")
        self.image_python(sys.executable)
        self.storage_url = bucket.url
        self.variables: dict[str, str] = {}  # of the instance, beside what start() gives

    def stand_in(self, name: str, script: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/bash\n{script}\n")
        (self.bin / name).chmod(0o755)

    def image_python(self, executable: str) -> None:
        self.stand_in("python3", f'exec {executable} "$@"')
        self.stand_in("python", f'exec {executable} "$@"')

    def submit(
        self, command: str, files: dict[str, str] | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Put bundle and spec where the client puts them."""
        bundle = tarball(files or {"train.py": "print('hello')\n"})
        sha = hashlib.sha256(bundle).hexdigest()
        self.bucket.put(self.paths.bundle(sha), bundle)
        spec: dict[str, Any] = {
            "version": 1,
            "run_id": RUN_ID,
            "attempt": 1,
            "bucket": self.bucket.name,
            "prefix": "mlflow-gce",
            "bundle": {"object": self.paths.bundle(sha), "sha256": sha, "size": len(bundle)},
            "workdir": "",
            "command": command,
            "env": {},
            "environment": {"manager": "local", "python": None, "requirements": []},
            "tracking": {"experiment_id": EXPERIMENT_ID, **self.tracking()},
            "deadline": time.time() + 120,
            "grace_seconds": 5,
            "require": [],
        }
        spec.update(changes)
        self.bucket.put(self.paths.spec, json.dumps(spec).encode())
        self.plane.set_attribute(SPEC_ATTRIBUTE, f"gs://{self.bucket.name}/{self.paths.spec}")
        return spec

    def tracking(self) -> dict[str, Any]:
        return {
            "experiment": {
                "experiment_id": EXPERIMENT_ID,
                "name": "digits",
                "artifact_location": self.location,
                "lifecycle_stage": "active",
                "creation_time": 1764000000000,
                "last_update_time": 1764000000000,
            },
            "run": {
                "info": {
                    "run_id": RUN_ID,
                    "run_uuid": RUN_ID,
                    "run_name": "brave-bird-1",
                    "experiment_id": EXPERIMENT_ID,
                    "user_id": "me",
                    "status": "RUNNING",
                    "start_time": 1764000000000,
                    "artifact_uri": f"gs://{self.bucket.name}/{self.artifacts}",
                    "lifecycle_stage": "active",
                },
                "data": {
                    "params": [
                        {"key": "epochs", "value": "1e0"},
                        {"key": "note", "value": "'a b'"},
                    ],
                    "tags": [{"key": "mlflow.runName", "value": "brave-bird-1"}],
                },
                "inputs": {},
            },
        }

    def start(self, python: str = sys.executable, *flags: str, console: int | None = None) -> None:
        """Start the agent as the startup script does.

        Args:
            console: a descriptor to print to, in place of the file that ``console`` reads.
        """
        variables = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "STATE_DIRECTORY": str(self.root / "state"),
            "STORAGE_EMULATOR_HOST": self.storage_url,
            **self.plane.environment,
            **self.variables,
        }
        log = (self.root / "console").open("ab")
        self.process = subprocess.Popen(
            [python, "-I", *flags, str(self._agent)],
            env=variables,
            stdout=log if console is None else console,
            stderr=log if console is None else console,
            cwd=self.root,
        )
        log.close()

    def wait(self, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for the agent's end; the status it wrote."""
        assert self.process is not None
        self.process.wait(seconds)
        assert self.process.returncode == 0, self.console
        return self.status

    def run(self, command: str, files: dict[str, str] | None = None, **changes: Any) -> Any:
        self.submit(command, files, **changes)
        self.start()
        return self.wait()

    def peak_memory(self) -> int:
        """The most that the agent had in memory so far, in bytes; 0 when it has ended."""
        assert self.process is not None
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return max((int(one.split()[1]) << 10 for one in lines if one[:6] == "VmHWM:"), default=0)

    def kill(self) -> None:
        """SIGKILL to the agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def reboot(self) -> None:
        """Nothing of the instance's processes survives; the disk does."""
        self.clean_up()
        note = self.state / "trainer" / "intent"
        note.write_text("the boot before this one")

    @property
    def state(self) -> Path:
        return self.root / "state" / "mlflow-gce"

    def cancel(self) -> None:
        self.plane.set_attribute(CANCEL_ATTRIBUTE, "1")

    @property
    def status(self) -> Any:
        return self.bucket.json(self.paths.status)

    @property
    def console(self) -> str:
        return (self.root / "console").read_text()

    @property
    def log(self) -> str:
        return self.bucket.joined(self.paths.log_dir).decode()

    @property
    def journal(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in self.bucket.joined(self.paths.journal_dir).splitlines()
        ]

    @property
    def phases(self) -> list[str]:
        heartbeat = self.bucket.json(self.paths.heartbeat) or {"phases": []}
        return [entry["phase"] for entry in heartbeat["phases"]]

    def wait_for_phase(self, phase: str) -> None:
        wait_for(lambda: phase in self.phases, f"phase {phase}: {self.console}")

    def clean_up(self) -> None:
        """End what still runs: the agent, and the trainer's process group."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        note = self.state / "trainer" / "process"
        if note.exists() and not note.with_name("exit_code").exists():
            pid = int(note.read_text().splitlines()[1].split()[0])
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
