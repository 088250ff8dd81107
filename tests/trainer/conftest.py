"""Sandboxes: one per test, and one that many tests ask about."""

from pathlib import Path

import pytest
from sandbox import FAST, Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox.make(tmp_path)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Two epochs of the smallest model on the smallest data, run once for many questions."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("fast"))
    sandbox.train(*FAST, "trainer.epochs=2")
    return sandbox
