"""``hydra/launcher=gce``: each job of a multirun on a Compute Engine instance of its own.

Hydra imports this at the start of every application in the environment, so nothing here may cost
time: no google, no MLflow, and ``gce_backend`` only when a sweep is launched. Hydra executes the
module anew at each scan and outside of ``sys.modules``, so it holds no state, and its annotations
are no strings (dataclasses would look for their module).
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@dataclass
class GceLauncherConf:
    """``hydra.launcher``; what concerns instances is in ``machine`` and ``gce``, as for any run.

    Attributes:
        wait: False: ask for the instances and leave.
        resume: auto: go on with the same sweep where it did not end well; never; or a sweep's id.
        machine, gce: for programs whose own configuration has no such nodes.
        project: the directory that is shipped; None: the project around the program.
        env: plain variables for the jobs; never secrets.
        direction: minimize or maximize, to name the best job; None: as the sweeper says.
        register: registers the best job's logged model by this name, with the alias `best`.
    """

    _target_: str = "hydra_plugins.hydra_gce_launcher.GceLauncher"
    wait: bool = True
    resume: str = "auto"
    machine: str = "n1-standard-2"
    gce: Any = None  # a map; typed as one, Hydra would ask for + before each new key
    project: Optional[str] = None  # noqa: UP045
    env: Any = None
    direction: Optional[str] = None  # noqa: UP045
    register: Optional[str] = None  # noqa: UP045


class GceLauncher(Launcher):  # type: ignore[misc]
    """The seam to Hydra; the work is in ``gce_backend.sweep.launch``."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.lock = threading.Lock()  # `launch` may be called from several threads
        self.sweep: Any = None  # one for all batches
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from gce_backend.sweep.launch import launch

        return launch(self, job_overrides, initial_job_idx)


class WithoutMultirun(Callback):  # type: ignore[misc]
    """Says aloud what Hydra does silently: without ``-m`` it asks no launcher."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        log.warning(
            "hydra/launcher=gce does nothing without -m (--multirun): this runs on this machine. "
            "On an instance: add -m, or use mlflow run . --backend gce"
        )


NOTICE = "mlflow_gce_without_multirun"

ConfigStore.instance().store(
    group="hydra/launcher",
    name="gce",
    package="_global_",
    node={
        "hydra": {
            "launcher": GceLauncherConf,
            "callbacks": {NOTICE: {"_target_": "hydra_plugins.hydra_gce_launcher.WithoutMultirun"}},
        }
    },
    provider="mlflow-gce",
)
