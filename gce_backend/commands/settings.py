"""The options of commands that are about a run to come, as in ``mlflow run``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from gce_backend.config import Settings

F = TypeVar("F", bound=Callable[..., Any])


def run_options(command: F) -> F:
    """``-e`` and ``-P``."""
    parameters = click.option(
        "-P",
        "parameters",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_map_of,
        help="As in `mlflow run`.",
    )
    entry_point = click.option(
        "-e",
        "--entry-point",
        metavar="NAME",
        default="main",
        show_default=True,
        help="As in `mlflow run`.",
    )
    return entry_point(parameters(command))


def _map_of(_context: click.Context, _option: click.Parameter, words: list[str]) -> dict[str, str]:
    """As `mlflow run` reads them, and refused in its words."""
    found: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise click.UsageError(f"Invalid format for -P parameter: '{word}'. Use -P name=value.")
        if key in found:
            raise click.UsageError(f"Repeated parameter: '{key}'")
        found[key] = value
    return found


def settings_of_run(
    directory: Path,
    entry_point: str,
    parameters: Mapping[str, str],
    backend_config: Mapping[str, Any] | None = None,
    *,
    tracking_uri: str | None = None,
) -> Settings:
    """Those with which `mlflow run` would go, by the same way, so that it refuses the same.

    Raises:
        ProjectError, ConfigError: as `mlflow run` would say it.
    """
    from gce_backend.project import open_source
    from gce_backend.submit import Order, examine
    from gce_backend.tracking import resolve_uri

    order = Order(
        uri=str(directory),
        entry_point=entry_point,
        tracking_uri=resolve_uri(tracking_uri),
        experiment_id="",
        parameters=parameters,
        backend_config=backend_config or {},
    )
    with open_source(order.uri, None) as source:
        return examine(order, source).settings
