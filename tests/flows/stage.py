"""A run that is stopped at a moment of its life, so that something can be done to it there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients import Client
from conftest import PROJECTS, Cloud, wait_until

from gce_backend.emulator import Fault, leftovers

GATED = PROJECTS / "gated"
ZONES = "-Pgce.zones=[europe-west1-b,europe-west4-a]"
# Of an API call that is held up, by the emulator's clock: the clock moves on when it is let go.
_HELD_SECONDS = 20.0


@dataclass
class Stage:
    """One story's cloud, the client that plays in it, and the instance it made."""

    cloud: Cloud
    client: Client | None = None
    at: float = 0.0  # the emulator's clock when it was stopped at its moment
    skipped: float = 0.0  # seconds that the clock was moved on by since
    cut_off: bool = False  # something is away, and comes back by itself
    words: tuple[str, ...] = ()  # more of the command line

    def submit(self, *words: str, project: Path = GATED) -> Client:
        # The image's own Python is enough, save where an environment is what it is about.
        manager = ["--env-manager", "local"] if project == GATED else []
        self.client = self.cloud.start_run(project, *manager, ZONES, *self.words, *words)
        return self.client

    def mlflow_gce(self, *words: str, seconds: float = 120, **environ: str) -> tuple[int, str]:
        return self.cloud.mlflow_gce(*words, seconds=seconds, **environ)

    def let_go(self) -> None:
        """Whatever is held up goes on at once."""
        self.cloud.emulator.advance(_HELD_SECONDS)
        self.skipped += _HELD_SECONDS

    # -- what there is ------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return [str(each["name"]) for each in self.cloud.emulator.instances()]

    @property
    def instance(self) -> str:
        (name,) = self.names
        return name

    @property
    def run_id(self) -> str:
        return str(self.cloud.only_run().info.run_id)

    def calls(self, name: str, path: str = "") -> list[Any]:
        """The record's calls of a method that concern this story."""
        return [
            call
            for call in self.cloud.emulator.calls
            if call.name == name
            and path in call.path
            and (self.cloud.bucket in call.path or self.cloud.bucket in str(call.body))
        ]

    def deletes(self) -> list[Any]:
        """Deletions of this run's instances."""
        run_id = self.run_id
        return [
            call
            for call in self.cloud.emulator.calls
            if call.name == "instances.delete" and run_id in call.path and call.status == 200
        ]

    def pids(self, words: str) -> list[int]:
        """Processes of the instance whose command line has ``words``."""
        (instance,) = self.cloud.emulator.instances()
        found = leftovers.marked(f"{self.cloud.emulator.mark}/{instance['id']}")
        return [pid for pid in found if words in _command(pid)]

    def kill(self, words: str) -> None:
        pids = wait_until(lambda: self.pids(words), 20, f"a process {words!r}")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def reset(self) -> None:
        """The reset button of the instance, pressed through the API."""
        (found,) = self.cloud.emulator.instances()
        zone = found["zone"].rpartition("/")[2]
        path = f"projects/emulator-project/zones/{zone}/instances/{found['name']}/reset"
        request = urllib.request.Request(
            self.cloud.emulator.compute_url + path, data=b"", method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()

    def work(self) -> Path:
        """Where the training runs."""
        folder = self.cloud.emulator.instance_directory(self.instance)
        return folder / "state" / "mlflow-gce" / "work"

    # -- moments ------------------------------------------------------------------------------

    @contextmanager
    def stopped_at(self, moment: str, *words: str) -> Iterator[None]:
        """A run that was submitted and is at ``moment``; it goes on after the block."""
        self.words = words
        reach, go_on = _MOMENTS[moment](self)
        wait_until(reach, 90, moment)
        self.at = self.cloud.emulator.now()
        yield
        go_on()

    def held(self, method: str, resource: str = "*", **fault: Any) -> Callable[[], bool]:
        """Hold up the next call of ``method``; the check that it has come in."""
        self.cloud.emulator.inject(
            Fault(fault.get("kind", "slow"), method, resource, seconds=_HELD_SECONDS)
        )
        return lambda: (
            not any(
                each["method"] == method and each["resource"] == resource for each in self._faults()
            )
        )

    def _faults(self) -> Any:
        url = self.cloud.emulator.compute_url.replace("compute/v1/", "_emulator/faults")
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)

    def exists(self, part: str) -> bool:
        return any(part in name for name in self.cloud.objects("mlflow-gce/runs/"))


Moment = tuple[Callable[[], Any], Callable[[], None]]


def _held_call(method: str, pattern: str = "*", kind: str = "slow") -> Callable[[Stage], Moment]:
    def moment(stage: Stage) -> Moment:
        resource = pattern.replace("BUCKET", stage.cloud.bucket)
        reached = stage.held(method, resource, kind=kind)
        stage.submit()
        return reached, stage.let_go

    return moment


def _gate(name: str) -> Callable[[Stage], Moment]:
    def moment(stage: Stage) -> Moment:
        stage.submit(f"-Phold={name}")

        def reached() -> bool:
            return bool(stage.names) and (stage.work() / f"at-{name}").exists()

        def go_on() -> None:
            if stage.names and stage.work().exists():
                (stage.work() / "go").touch()

        return reached, go_on

    return moment


def _uploading(stage: Stage) -> Moment:
    resource = f"{stage.cloud.bucket}/*result.txt"
    stage.cloud.emulator.inject(
        Fault("unavailable", "storage.objects.insert", resource, times=None)
    )
    stage.submit()

    def reached() -> bool:
        uploads = [c for c in stage.cloud.emulator.calls if c.name == "storage.objects.insert"]
        return any(c.status == 503 and stage.cloud.bucket in c.path for c in uploads)

    def go_on() -> None:
        if not stage.cut_off:
            stage.cloud.emulator.clear_faults()

    return reached, go_on


def _download(
    name: str, project: Callable[[Stage], Path] | None = None
) -> Callable[[Stage], Moment]:
    """Held up once the instance is asked for: the client looks at the object before."""

    def moment(stage: Stage) -> Moment:
        stage.submit(project=project(stage) if project else GATED)
        held: list[Callable[[], bool]] = []

        def reached() -> bool:
            if not held and stage.cloud.inserts():
                pattern = f"{stage.cloud.bucket}/*/{name}"
                held.append(stage.held("storage.objects.get", pattern))
            return bool(held) and held[0]()

        return reached, stage.let_go

    return moment


def _with_environment(stage: Stage) -> Path:
    """The project with an environment to be built, though without anything from an index."""
    project = stage.cloud.directory / "built"
    shutil.copytree(GATED, project)
    with (project / "MLproject").open("a") as file:
        file.write("python_env: python_env.yaml\n")
    # A line that is no requirement can only be judged by an installer: so one is run.
    (project / "python_env.yaml").write_text("dependencies: [--no-index]\n")
    return project


_MOMENTS: dict[str, Callable[[Stage], Moment]] = {
    "before insert": _held_call("storage.objects.insert", "BUCKET/*/spec.json"),
    "insert sent but no reply": _held_call("instances.insert"),
    "creating": _held_call("instances.insert", kind="operation_slow"),
    "booting": _held_call("storage.objects.get", "BUCKET/*/agent-*"),
    "fetching": _download("bundles/*"),
    "environment": _download("uv-*.whl", _with_environment),
    "epoch 1": _gate("epoch1"),
    "epoch 2": _gate("epoch2"),
    "uploading results": _uploading,
    "after status.json": _held_call("instances.delete"),
    "deleting": _held_call("instances.delete", kind="operation_slow"),
}
MOMENTS = list(_MOMENTS)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
