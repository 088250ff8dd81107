"""``mlflow-gce pull``: a run's results, from the bucket to here."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.lines import print_json, say
from gce_backend.commands.options import DIRECTORY, JSON, RUN, TRACKING_URI
from gce_backend.commands.tables import size
from gce_backend.place import configured_here

if TYPE_CHECKING:
    from gce_backend.download import Item, Rate
    from gce_backend.run_in_bucket import RunPlace

_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


@click.command()
@RUN
@DIRECTORY
@TRACKING_URI
@JSON
@looking_around
def pull(run: str, directory: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    """Download RUN's artifacts and logged models into DIR, each checked by its CRC32C.

    DIR is results/USER-DATE-TIME-ID by default, so that the last in order is the latest run.
    Files that are there already are left; after an interruption the same command goes on.

    The exit code is 1 when something the run had produced is not in the bucket.
    """
    from gce_backend.results import results
    from gce_backend.storage import Storage

    place = guarded(lambda: _find(run, tracking_uri))
    run_id = place.paths.run_id
    target = directory or Path("results") / _folder(place)

    def look() -> tuple[list[Item], list[str]]:
        storage = Storage(place.bucket, project=place.project)
        return results(storage, place.paths, place.artifact_uri, target)

    items, lost = guarded(look)
    fetched, seconds = guarded(lambda: _download(items, place.project, quiet=as_json))
    if as_json:
        files = {str(item.target): item.size for item in items}
        print_json(
            {
                "run_id": run_id,
                "directory": target,
                "files": files,
                "lost": lost,
                "fetched": fetched,
                "seconds": seconds,
            }
        )
    else:
        total = size(sum(item.size for item in items))
        say(f"{len(items)} files, {total}, checksums verified: {target}")
    for name in lost:
        click.echo(f"mlflow-gce: the run had produced {name}; it is not in the bucket", err=True)
    if not items:
        click.echo(f"mlflow-gce: run {run_id} has no artifacts (yet)", err=True)
    sys.exit(1 if lost else 0)


def _find(run: str, tracking_uri: str | None) -> RunPlace:
    """By its whole id from the bucket alone, which is quicker by seconds; else from the store."""
    from gce_backend.run_in_bucket import RunPlace, find_in_bucket

    bucket = os.environ.get("MLFLOW_GCE_BUCKET") or configured_here("bucket")
    if found := find_in_bucket(run, bucket, configured_here("prefix") or "mlflow-gce"):
        return found
    from gce_backend.run_finder import find_run

    here, record = find_run(run, tracking_uri)
    return RunPlace(
        here.project, here.bucket, here.paths, record.artifact_uri, record.user, record.started_at
    )


def _folder(place: RunPlace) -> str:
    began = time.strftime("%Y%m%d-%H%M%S", time.localtime(place.started_at))
    user = re.sub(r"[^\w.-]+", "-", place.user) or "run"
    return f"{user}-{began}-{place.paths.run_id[:8]}"


def _download(items: list[Item], project: str | None, *, quiet: bool) -> tuple[int, float]:
    """How many bytes came, and how many seconds it took, checksums included."""
    from gce_backend.download import Downloader, Rate

    rate = Rate()
    with _shown(rate, sum(item.size for item in items), quiet):
        fetched = Downloader(project=project, progress=rate.add).download(items)
        return fetched, rate.seconds


@contextmanager
def _shown(rate: Rate, total: int, quiet: bool) -> Iterator[None]:
    """Progress while the block runs: a bar on a terminal, else a line every few seconds."""
    over = threading.Event()
    show = _draw_bar if sys.stderr.isatty() else _print_lines
    thread = threading.Thread(target=show, args=(rate, total, over), daemon=True)
    if not quiet:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if not quiet:
            thread.join()


def _draw_bar(rate: Rate, total: int, over: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        while not over.wait(0.2):
            progress.update(task, completed=rate.bytes)
        progress.update(task, completed=rate.bytes)


def _print_lines(rate: Rate, total: int, over: threading.Event) -> None:
    while not over.wait(_LINE_SECONDS):
        speed = size(rate.bytes / max(rate.seconds, 0.001))
        click.echo(f"{size(rate.bytes)} of {size(total)}, {speed}/s", err=True)
