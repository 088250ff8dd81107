"""A real `mlflow server` on loopback, in processes of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from gce_backend.emulator.ports import free_port


class MlflowServer:
    """It can be killed and started again, at the same address.

    Args:
        directory: where it runs.
        environ: of its processes; this one's by default.
    """

    def __init__(
        self, directory: Path, store_uri: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        self._command += ["--backend-store-uri", store_uri, "--port", str(self.port)]
        self._command += ["--allowed-hosts", "*"]  # it may be reached by another name
        self._directory, self._environ = directory, environ
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 120) -> None:
        """Return once it answers.

        Raises:
            AssertionError: it has ended instead.
            OSError: it does not answer after ``seconds``.
        """
        inherited = os.environ if self._environ is None else self._environ
        self._process = subprocess.Popen(
            self._command,
            cwd=self._directory,
            env={**inherited, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                assert self._process.poll() is None, "mlflow server ended"
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def kill(self) -> None:
        """With all its workers; nothing happens where it does not run."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
