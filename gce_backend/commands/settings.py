"""The ``-P`` of commands that are about a run to come, as in ``mlflow run``."""

from __future__ import annotations

import click

PARAMETERS = click.option(
    "-P", "parameters", multiple=True, metavar="KEY=VALUE", help="As in `mlflow run`."
)


def backend_parameters(words: tuple[str, ...]) -> dict[str, str]:
    """Those that are this backend's; the entry point's say nothing here."""
    from gce_backend.config import is_backend_parameter

    pairs = [word.partition("=")[::2] for word in words]
    return {key: value for key, value in pairs if is_backend_parameter(key)}
