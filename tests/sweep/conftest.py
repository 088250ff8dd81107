"""A sweep's stories: the emulator and the command line of tests/flows, and a small program."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
#: Of Hydra's suites, what a usual run has; the rest takes minutes and is `long`.
SLICE = ("test_sweep_2_jobs[", "test_sweep_with_custom_resolver", "test_get_orig_dir_multirun")
FLOWS = Path(__file__).parent.parent / "flows" / "conftest.py"


def _flows() -> Any:
    """tests/flows/conftest.py as a module: its fixtures are these stories' too."""
    name = "flows_conftest"
    if name not in sys.modules:
        sys.path.append(str(FLOWS.parent))  # as pytest does for what lies beside it
        spec = importlib.util.spec_from_file_location(name, FLOWS)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_conformance.py" and not item.name.startswith(SLICE):
            item.add_marker("long")


_emulator = _flows()._emulator
emulator = _flows().emulator
cloud = _flows().cloud
wait_until = _flows().wait_until


@pytest.fixture
def environment(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The story's cloud for code of this process, which starts in a directory of its own."""
    for name, value in cloud.environ.items():
        if os.environ.get(name) != value and name != "TMPDIR":
            monkeypatch.setenv(name, value)
    (cloud.directory / "README").write_text("a project has a file at least\n")
    monkeypatch.chdir(cloud.directory)
    return cloud
