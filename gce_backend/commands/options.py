"""Arguments and options that several commands have, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path

import click

RUN = click.argument("run", metavar="RUN")
DIRECTORY = click.argument(
    "directory",
    metavar="[DIR]",
    required=False,
    type=click.Path(path_type=Path, file_okay=False),
)
TRACKING_URI = click.option(
    "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow store; MLflow's own by default."
)
PROJECT = click.option(
    "--project",
    envvar="GOOGLE_CLOUD_PROJECT",
    help="Google Cloud project; by default that of conf/ or of your credentials.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
