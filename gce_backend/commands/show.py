"""``mlflow-gce show``: one run, with its history, its facts, and what can be done next."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.lines import moment, print_json
from gce_backend.commands.options import JSON, RUN, TRACKING_URI
from gce_backend.commands.tables import Column, print_facts, print_table, usd

if TYPE_CHECKING:
    from gce_backend.history import Event
    from gce_backend.overview import Standing
    from gce_backend.run_finder import RunRecord
    from gce_backend.submission import Submission

_HISTORY = [
    Column("AT"),
    Column("ATTEMPT", right=True),
    Column("PHASE"),
    Column("ZONE"),
    Column("WHY"),
]
_LINKS = {"gce.console": "console", "gce.files": "files"}


@dataclass(frozen=True)
class _Run:
    """All that is known of a run.

    Args:
        standing: its instance now; None when there is none.
        unknown: what could not be read, in sentences.
    """

    submission: Submission
    record: RunRecord
    tags: dict[str, str]
    history: list[Event]
    status: dict[str, Any] | None
    standing: Standing | None
    unknown: list[str]


@click.command()
@RUN
@TRACKING_URI
@JSON
@looking_around
def show(run: str, tracking_uri: str | None, as_json: bool) -> None:
    """Show RUN: how it stands or ended, its history, cost and links, and the next commands."""
    from gce_backend.config import read_endpoints

    endpoints = guarded(read_endpoints)
    found = guarded(lambda: _read(run, tracking_uri, endpoints))
    if as_json:
        print_json(_as_json(found))
        return
    print_facts(f"run {found.record.name} ({found.record.run_id})", _facts(found))
    if found.history:
        click.echo()
        print_table(_HISTORY, [_event_cells(event) for event in found.history])
    click.echo()
    print_facts("next", _commands(found))
    for line in found.unknown:
        click.echo(f"mlflow-gce: {line}", err=True)


def _read(run: str, tracking_uri: str | None, endpoints: Any) -> _Run:
    from gce_backend.errors import ComputeError, StorageError
    from gce_backend.history import History
    from gce_backend.overview import standings
    from gce_backend.run_finder import read_run
    from gce_backend.storage import Storage

    submission, record, tags = read_run(run, tracking_uri)
    history: list[Event] = []
    status, standing, unknown = None, None, []
    try:
        storage = Storage(submission.bucket, project=submission.project, retry_seconds=10)
        history = History(storage, submission.paths).read()
        status = storage.read_json(submission.paths.status)
    except StorageError as error:
        unknown.append(str(error))
    try:
        found = standings(submission.project, endpoint=endpoints.compute, run_id=submission.run_id)
        standing = found[-1] if found else None
    except ComputeError as error:
        unknown.append(str(error))
    return _Run(submission, record, tags, history, status, standing, unknown)


def _facts(run: _Run) -> list[tuple[str, str]]:
    record, here, status = run.record, run.submission, run.status or {}
    rows = [("status", f"{record.status}{f' ({record.end_reason})' if record.end_reason else ''}")]
    if status.get("message"):
        rows.append(("message", str(status["message"])))
    if state := run.tags.get("gce.state"):
        rows.append(("state", state))
    rows.append(("instance", _instance(run)))
    price = f", {usd(record.usd_per_hour)}/h by list price" if record.usd_per_hour else ""
    rows.append(("machine", f"{record.machine_type} in {here.zone}{price}"))
    rows.append(("started", f"{moment(record.created_at)} by {record.user or 'somebody'}"))
    if run.standing and run.standing.instance.deadline:
        deadline = run.standing.instance.deadline
        rows.append(("deadline", f"{moment(deadline)}, then Compute Engine deletes the instance"))
    cost = run.standing.cost_usd if run.standing and not record.is_over else record.cost_usd
    rows.append(("cost", f"{usd(cost)} {'so far' if not record.is_over else ''}".rstrip()))
    rows.append(("artifacts", record.artifact_uri))
    rows.append(("log, status", here.uri))
    rows += [(name, run.tags[tag]) for tag, name in _LINKS.items() if tag in run.tags]
    return rows


def _instance(run: _Run) -> str:
    if run.standing is None:
        unread = any("instances" in line for line in run.unknown)
        return f"{run.submission.instance}, {'not known' if unread else 'gone: nothing bills'}"
    here = run.standing.instance
    note = "" if run.standing.verdict.fate.value == "working" else f": {run.standing.verdict.why}"
    orphan = "ORPHAN, " if run.standing.is_orphan else ""
    return f"{here.name}, {orphan}{here.status}, {run.standing.phase}{note}"


def _event_cells(event: Event) -> list[str]:
    return [moment(event.at), str(event.attempt), event.phase.value, event.zone, event.why]


def _commands(run: _Run) -> list[tuple[str, str]]:
    run_id = run.record.run_id
    rows: list[tuple[str, str]] = []
    if run.standing is not None and run.standing.verdict.command:
        rows.append(("look further", run.standing.verdict.command))
    if run.standing is not None:
        rows.append(("follow", f"mlflow-gce attach {run_id}"))
        rows.append(("end", f"mlflow-gce stop {run_id}"))
    elif not run.record.is_over:
        rows.append(("its end into the store", f"mlflow-gce sync {run_id}"))
    rows.append(("log", f"mlflow-gce logs {run_id}"))
    rows.append(("results", f"mlflow-gce pull {run_id}"))
    return rows


def _as_json(run: _Run) -> dict[str, Any]:
    record = run.record
    standing = run.standing
    return {
        "run_id": record.run_id,
        "name": record.name,
        "status": record.status,
        "end_reason": record.end_reason,
        "message": (run.status or {}).get("message", ""),
        "machine": record.machine_type,
        "zone": run.submission.zone,
        "project": run.submission.project,
        "instance": run.submission.instance,
        "instance_exists": standing is not None,
        "phase": standing.phase if standing else None,
        "orphan": bool(standing and standing.is_orphan),
        "deadline": run.submission.deadline,
        "created_at": record.created_at,
        "age": time.time() - record.created_at,
        "ended_at": record.ended_at,
        "cost_usd": record.cost_usd if record.is_over or not standing else standing.cost_usd,
        "artifact_uri": record.artifact_uri,
        "files": run.submission.uri,
        "tags": {name: value for name, value in run.tags.items() if name.startswith("gce.")},
        "history": [
            {
                "attempt": event.attempt,
                "phase": event.phase.value,
                "at": event.at,
                "zone": event.zone,
                "why": event.why,
            }
            for event in run.history
        ],
        "unknown": run.unknown,
    }
