"""The seam to MLflow: a project backend and the handle of a submitted run.

MLflow's command line does not wait for a plugin backend: it exits when ``run`` returns. So ``run``
follows to the end when that command line called it, and returns at once to callers from Python,
who have ``wait``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import SubmittedRun

from gce_backend.config import Endpoints, Settings
from gce_backend.console import Console
from gce_backend.errors import GceBackendError
from gce_backend.glance import glance
from gce_backend.interrupts import Detached, Interrupted, Interrupts
from gce_backend.submission import Submission


class GceSubmittedRun(SubmittedRun):  # type: ignore[misc]
    """A run on its instance, which needs nobody to wait for it.

    Args:
        settings: None for a run that somebody else submitted: defaults apply.
    """

    def __init__(
        self, submission: Submission, endpoints: Endpoints, settings: Settings | None = None
    ) -> None:
        self.submission = submission
        self._endpoints = endpoints
        self._settings = settings

    @property
    def run_id(self) -> str:
        return self.submission.run_id

    def wait(self) -> bool:
        """Follow until the instance is gone; True when the run succeeded.

        Raises:
            ResultsUnverified, CleanupError, TrackingError: see ``Runner.follow``.
        """
        return bool(
            self.runner(Console(quiet=True)).follow(Interrupts(active=False)).exit_code == 0
        )

    def get_status(self) -> Any:
        """The run's ``RunStatus`` in the tracking store, brought up to date from the bucket."""
        from mlflow.entities import RunStatus

        from gce_backend.tracking import Tracking

        self.runner(Console(quiet=True)).sync()
        return RunStatus.from_string(Tracking(self.submission.tracking_uri).status(self.run_id))

    def cancel(self) -> None:
        """End the run: its results are saved, its status is KILLED, its instance deleted."""
        self.runner(Console(quiet=True)).cancel(Interrupts(active=False))

    def runner(self, console: Console) -> Any:
        """Who follows this run, as patiently as its settings say."""
        from gce_backend.runner import Limits, Runner

        gce = self._settings.gce if self._settings else None
        limits = Limits(gce.boot_minutes * 60, gce.grace_seconds) if gce else Limits()
        return Runner(
            self.submission,
            endpoints=self._endpoints,
            console=console,
            limits=limits,
        )


class GceBackend(AbstractBackend):  # type: ignore[misc]
    """``mlflow run . --backend gce``."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: Mapping[str, Any] | None,
        version: str | None,
        backend_config: Mapping[str, Any] | None,
        tracking_uri: str,
        experiment_id: str,
    ) -> GceSubmittedRun:
        """Submit the run; from ``mlflow run`` also follow it and exit with its exit code.

        Raises:
            ExecutionException: with our message, which MLflow's command line prints as it is.
        """
        from mlflow.exceptions import ExecutionException

        from gce_backend.submit import Order

        options = command_line_options()
        config = dict(backend_config or {})
        order = Order(
            uri=project_uri,
            entry_point=entry_point,
            tracking_uri=tracking_uri,
            experiment_id=str(experiment_id),
            parameters=dict(params or {}),
            version=version,
            backend_config=config,
            run_name=(options or {}).get("run_name"),
            env_manager=config.get("ENV_MANAGER"),
        )
        try:
            return _run(order, follow=options is not None)
        except (Detached, Interrupted) as left:
            print(f"mlflow-gce: {left}", file=sys.stderr)
            sys.exit(left.exit_code)
        except GceBackendError as error:
            raise ExecutionException(str(error)) from error


def command_line_options() -> Mapping[str, Any] | None:
    """The options of the running ``mlflow run`` command, or None for a call from Python.

    A program with a click command of its own may call ``mlflow.projects.run`` as well, so the
    context alone proves nothing.
    """
    import click

    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "run":
        return None
    callback = context.command.callback
    module = getattr(callback, "__module__", "") or ""
    return context.params if module.partition(".")[0] == "mlflow" else None


def _run(order: Any, *, follow: bool) -> GceSubmittedRun:
    from gce_backend.submit import submit

    console = Console(quiet=not follow)
    with Interrupts(active=follow) as interrupts:
        submission, settings = submit(order, console, interrupts)
        handle = GceSubmittedRun(submission, settings.endpoints, settings)
        if not follow:
            return handle
        glance(settings.project, say=console.warn, except_run=submission.run_id)
        if not settings.gce.follow and not interrupts.wants_cancel:
            console.say(f"detached; come back with: mlflow-gce attach {submission.run_id}")
            return handle
        result = handle.runner(console).follow(interrupts)
    if result.exit_code:
        console.warn(result.message)
        sys.exit(result.exit_code)
    return handle
