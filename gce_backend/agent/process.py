"""The trainer: a process group of its own, that outlives the agent and is found again.

A small shell around the command writes down who it is before the command starts, and the exit
code after it has ended; both are read by whichever agent is alive at that time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .family import MARK, Family, boot_id, is_alive, start_time, stat
from .log import RunLog
from .relay import HOST
from .spec import Spec
from .stop import Stop
from .users import Account

# A trap (unlike an ignored signal) is not inherited: the command sees the signal, the shell
# stays to write the exit code down, after the note that there was a signal, which comes first:
# bash runs a trap when the command has ended. $1 is the command, $2 the directory for the notes.
_WRAPPER = r"""
trap ': > "$2/signalled"' TERM INT HUP
trap : QUIT USR1 USR2
cat /proc/sys/kernel/random/boot_id /proc/$$/stat > "$2/process.tmp"
mv "$2/process.tmp" "$2/process"
bash -c "$1"
code=$?
echo "$code" > "$2/exit_code.tmp" && mv "$2/exit_code.tmp" "$2/exit_code"
exit "$code"
"""
_POLL_S = 0.1
_KILLED = 128 + signal.SIGKILL
_AFTER_KILL_S = 10.0  # a process in the kernel's hands takes its time
# Between the start of the shell and its first note; a restarted agent waits so long for it.
_NOTE_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Launch:
    """What to run, where, as whom."""

    command: str
    workdir: Path
    variables: dict[str, str]
    account: Account


def trainer_variables(
    spec: Spec, url: str, token: str, bin_directory: str, account: Account
) -> dict[str, str]:
    """The trainer's environment variables: the agent's own, MLflow's, the spec's.

    Args:
        url, token: of the relay.
        bin_directory: goes first on PATH; "" for the image's own Python.
    """
    variables = {**os.environ, "HOME": account.home, "USER": account.name, "LOGNAME": account.name}
    # A user name and a password would win over the token.
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        variables.pop(name, None)
    variables.update(
        MLFLOW_RUN_ID=spec.run_id,
        MLFLOW_TRACKING_URI=url,
        MLFLOW_TRACKING_TOKEN=token,
        MLFLOW_EXPERIMENT_ID=str(spec.experiment["experiment_id"]),
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_GCE_ATTEMPT=str(spec.attempt),
        # The links MLflow prints would lead to the relay, which nobody else can open.
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        PYTHONUNBUFFERED="1",
        GIT_PYTHON_REFRESH="quiet",
    )
    if spec.system_metrics_seconds:  # the agent's; MLflow's own would need psutil to start at all
        variables["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
    variables.update(spec.env)
    variables.update(_past_any_proxy(variables))
    if bin_directory:
        path = variables.get("PATH") or os.defpath
        variables.update(PATH=f"{bin_directory}:{path}", VIRTUAL_ENV=os.path.dirname(bin_directory))
    return variables


def _past_any_proxy(variables: dict[str, str]) -> dict[str, str]:
    """A proxy that the image or the user has set is none for the relay, on our own loopback."""
    named = [variables[name] for name in ("no_proxy", "NO_PROXY") if variables.get(name)]
    exempt = ",".join([*dict.fromkeys(named), HOST])
    return {"no_proxy": exempt, "NO_PROXY": exempt}


class Trainer:
    """Args:
    notes: directory for the shell's notes; must be writable for the trainer's account.
    """

    def __init__(self, notes: Path, log: RunLog) -> None:
        self._notes, self._log = notes, log
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._family = Family(0, str(notes))
        self._why = ""  # it was told to end, in this agent's life
        self._started = ""  # start time in clock ticks since boot; with the pid, who it is

    @property
    def told(self) -> str:
        """Why the trainer was told to end; "" when it was not. Kept over restarts."""
        try:
            return self._why or (self._notes / "told").read_text()
        except FileNotFoundError:
            return ""

    @property
    def exit_code(self) -> int | None:
        """The exit code once the trainer has ended and could write it down."""
        try:
            return int((self._notes / "exit_code").read_text())
        except (FileNotFoundError, ValueError):
            return None

    @property
    def may_be_taken_along(self) -> bool:
        """Whether the trainer ended by a signal, or after one, that was not the agent's: a machine
        that shuts down sends it to all, and a trainer may make any exit code of it."""
        code = self.exit_code
        if code is None or self.told:
            return False
        return code > 128 or (self._notes / "signalled").exists()

    def find(self) -> bool:
        """Whether a trainer of before a restart of the agent still runs, or has ended since."""
        if not (self._notes / "intent").exists():
            return False
        until = time.monotonic() + _NOTE_PATIENCE_S
        while not (self._notes / "process").exists() and time.monotonic() < until:
            if self._boot_changed():
                return False
            time.sleep(_POLL_S)
        if self.exit_code is not None and not (self._boot_changed() and self.may_be_taken_along):
            return True
        try:
            boot, line = (self._notes / "process").read_text().splitlines()[:2]
        except (FileNotFoundError, ValueError):
            return False
        self._know(int(line.split()[0]), start_time(line))
        return boot == boot_id() and self._alive()

    def start(self, launch: Launch) -> None:
        """Start the command; its output goes to the run's log."""
        shutil.rmtree(self._notes, ignore_errors=True)
        self._notes.mkdir(parents=True)
        (self._notes / "intent").write_text(boot_id())
        launch.account.own(self._notes)
        self._process = subprocess.Popen(
            ["bash", "-c", _WRAPPER, "mlflow-gce", launch.command, str(self._notes)],
            cwd=launch.workdir,
            env={**launch.variables, MARK: str(self._notes)},
            stdin=subprocess.DEVNULL,
            stdout=self._log.descriptor,
            stderr=self._log.descriptor,
            start_new_session=True,
            **launch.account.popen(),
        )
        self._know(self._process.pid, start_time(stat(self._process.pid)))

    def wait(self, stop: Stop, grace: Callable[[], float]) -> int:
        """Wait for the end, or bring it about when ``stop`` is set; returns the exit code.

        The whole process group gets SIGTERM, and everything that the trainer has started SIGKILL
        when it is still there ``grace()`` seconds later. What it left running is killed after its
        end; after a signal from elsewhere only then.
        """
        while self._alive():
            if stop.wait(_POLL_S) and self._alive():
                self._why = stop.reason
                with contextlib.suppress(OSError):  # a full disk; the signal matters more
                    (self._notes / "told").write_text(stop.reason)
                self._terminate(grace())
                break
        if (self._notes / "signalled").exists() and not self.told:
            self._family.await_end(grace(), tell=True)
        self._family.signal(signal.SIGKILL)
        code = self.exit_code
        if code is not None:
            return code
        if self._process is not None and self._process.returncode:
            code = self._process.returncode
            return 128 - code if code < 0 else code
        return _KILLED  # it could not write its exit code down: nothing but SIGKILL does that

    def cpu_seconds(self) -> float:
        """What the trainer and everything it started have used, as far as it is still there."""
        return self._family.cpu_seconds() if self._pid else 0.0

    def _terminate(self, grace_seconds: float) -> None:
        """A shell that runs several commands dies at once; what it runs may still be saving."""
        self._log.say(f"SIGTERM to the trainer; SIGKILL in {grace_seconds:.0f} s")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGTERM)
        if not self._family.await_end(grace_seconds, tell=True):
            self._log.say(f"the trainer still runs after {grace_seconds:.0f} s: SIGKILL")
            self._family.signal(signal.SIGKILL)
            if not self._family.await_end(_AFTER_KILL_S):
                self._log.say("the trainer hangs in the kernel; what there is of it is collected")

    def _know(self, pid: int, started: str) -> None:
        self._pid, self._started = pid, started
        self._family = Family(pid, str(self._notes))

    def _alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        line = stat(self._pid)
        return is_alive(line) and start_time(line) == self._started

    def _boot_changed(self) -> bool:
        return (self._notes / "intent").read_text() != boot_id()
