"""What ``ssh`` and ``rescue`` share: a connection to a run's instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gce_backend.ssh import Connection
    from gce_backend.submission import Submission

VIA = click.option(
    "--via",
    type=click.Choice(["external", "internal", "iap"]),
    help="Another way to the instance than the one the run was submitted with.",
)
_PATIENCE_SECONDS = 90.0  # an instance that boots publishes its host keys within a minute


def reach(submission: Submission, via: str | None) -> Connection:
    """A connection to the instance of ``submission``.

    Raises:
        SshError: there is none, with the reason.
        InstanceNotFound: the instance is gone.
    """
    from gce_backend.compute import Compute
    from gce_backend.config import read_endpoints
    from gce_backend.errors import InstanceNotFound
    from gce_backend.ssh_access import SshAccess
    from gce_backend.ssh_route import Route
    from gce_backend.storage import Storage

    endpoints = read_endpoints()
    access = SshAccess(
        submission,
        Compute(submission.project, endpoint=endpoints.compute),
        Storage(submission.bucket, project=submission.project),
        route=Route.of(emulated=endpoints.emulated),
        via=via,
    )
    try:
        if not access.has_key and access.takes_keys:
            access.make_key()
            click.echo("mlflow-gce: this machine's key was added to the instance", err=True)
        return access.connect_within(
            _PATIENCE_SECONDS, lambda text: click.echo(f"mlflow-gce: {text}", err=True)
        )
    except InstanceNotFound as error:
        raise InstanceNotFound(
            f"{error}. The instance of run {submission.run_id} no longer exists; nothing bills. "
            f"What it left is in {submission.uri} and in MLflow"
        ) from error
