"""One emulator for many histories, and the client's code living in its time."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gce_backend.cancelling
import gce_backend.livesync
import gce_backend.reaper
import gce_backend.submit  # all that looks at the clock must be there before it is changed
from gce_backend.emulator import Emulator
from gce_backend.storage import Storage

from .events import BUCKET
from .world import Killed, World, lived_in


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(boot_seconds=0.01, isolated=False, limited=False) as one:
        one.create_bucket(BUCKET)
        yield one


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"


@pytest.fixture
def world(
    emulator: Emulator, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """The emulator's cloud, with the client's modules living in its time."""
    for name, value in emulator.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_GCE_BUCKET", BUCKET)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr(gce_backend.cancelling, "_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(gce_backend.livesync, "_PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # threads of killed clients
    one = World(emulator, Storage(BUCKET, project=emulator.project, retry_seconds=0))
    for name in ("submission", "instance_watch"):
        module = sys.modules[f"gce_backend.{name}"]
        monkeypatch.setattr(module, "is_dead", lambda _: "kill" in one.causes)
    _let_die(one, monkeypatch)
    with lived_in(one, monkeypatch, _modules()):
        yield one


def _modules() -> list[ModuleType]:
    """Of the client, those that look at the clock."""
    return [
        module
        for name, module in sorted(sys.modules.items())
        if name.startswith("gce_backend.")
        and not name.startswith("gce_backend.emulator")
        and getattr(module, "time", None) is sys.modules["time"]
    ]


def _let_die(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed client writes nothing into the store either."""
    import mlflow.tracking

    class Mortal(mlflow.tracking.MlflowClient):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if world.process.is_dead and not name.startswith("_"):
                raise Killed
            return super().__getattribute__(name)

    monkeypatch.setattr(mlflow.tracking, "MlflowClient", Mortal)
