"""Arguments and options that several commands have, so that they mean the same everywhere."""

from __future__ import annotations

import click

RUN = click.argument("run", metavar="RUN")
TRACKING_URI = click.option(
    "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow store; MLflow's own by default."
)
