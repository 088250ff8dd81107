"""Hydra's own suites for launchers, unmodified, each job on an emulated instance.

They ship in hydra-core. The integration suite writes to absolute paths of this machine and reads
them back, so it holds only where instances have /tmp for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import VersionBase

from gce_backend.emulator import isolation

# The suites put Hydra's singletons back to what they were before a test: to the plugins found.
Plugins.instance()

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("environment")]


@pytest.fixture(autouse=True)
def _no_version_base() -> Iterator[None]:
    """As in a fresh process: any program imported before, a decorated one, has set its own."""
    before = Singleton._instances.pop(VersionBase, None)
    yield
    Singleton._instances.pop(VersionBase, None)
    if before is not None:
        Singleton._instances[VersionBase] = before


isolated = pytest.mark.skipif(
    not isolation.is_permitted(), reason="instances share /tmp with this machine"
)


@pytest.mark.parametrize(("launcher_name", "overrides"), [("gce", [])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [("gce", ["hydra/sweeper=basic", "hydra.sweeper.max_batch_size=2"])],
)
class TestBatchedSweeper(BatchedSweeperTestSuite):
    pass


@isolated
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=gce"])])
class TestIntegration(IntegrationTestSuite):
    pass
