"""``mlflow-gce logs``: the training's own output, from the bucket."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.options import RUN, TRACKING_URI

if TYPE_CHECKING:
    from gce_backend.storage import Storage
    from gce_backend.submission import Submission

_POLL_SECONDS = 1.0
_INSTANCE_SECONDS = 15.0
_PIECES_AT_ONCE = 8


@click.command()
@RUN
@TRACKING_URI
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@click.option("--tail", "-n", type=click.IntRange(min=0), help="Only the last lines, so many.")
@looking_around
def logs(run: str, tracking_uri: str | None, follow: bool, tail: int | None) -> None:
    """Print what RUN's training has written, as far as it is in the bucket.

    It is byte for byte what the training wrote. `mlflow-gce attach` also shows phases and, at the
    end, deletes the instance; this only reads.
    """
    from gce_backend.run_finder import find_submission
    from gce_backend.storage import Storage

    submission = guarded(lambda: find_submission(run, tracking_uri))

    def show() -> None:
        storage = Storage(submission.bucket, project=submission.project)
        if tail is not None:
            number = _print_tail(storage, submission, tail)
        else:
            number = _print_from(storage, submission, 0)
        if follow:
            _follow(storage, submission, number)
        elif not number:
            click.echo(f"mlflow-gce: run {submission.run_id} has written nothing yet", err=True)

    try:
        guarded(show)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read us has enough; Python's own flush at the end must not complain either.
        with contextlib.suppress(OSError):
            sys.stdout.close()


def _print_from(storage: Storage, submission: Submission, after: int) -> int:
    for number, piece in _pieces(storage, submission, after):
        _write(piece)
        after = number
    return after


def _print_tail(storage: Storage, submission: Submission, lines: int) -> int:
    kept: deque[bytes] = deque(maxlen=lines)
    number, rest = 0, b""
    for number, piece in _pieces(storage, submission, 0):  # noqa: B007
        *whole, rest = (rest + piece).split(b"\n")
        kept.extend(line + b"\n" for line in whole)
    if rest:
        kept.append(rest)
    _write(b"".join(kept))
    return number


def _pieces(storage: Storage, submission: Submission, after: int) -> Iterator[tuple[int, bytes]]:
    """A few at a time, so that memory stays bounded."""
    while pieces := storage.read_log(submission.paths, after, limit=_PIECES_AT_ONCE):
        yield from pieces
        after = pieces[-1][0]


def _follow(storage: Storage, submission: Submission, number: int) -> None:
    """Print on until the run's status is there; leave when its instance is gone without one."""
    asked_at = time.monotonic()
    is_gone = False
    while True:
        status = storage.read_json(submission.paths.status)
        number = _print_from(storage, submission, number)
        if status is not None:
            return
        if is_gone:
            click.echo(
                f"mlflow-gce: instance {submission.instance!r} is gone or stopped, and left no "
                f"status. Run: mlflow-gce attach {submission.run_id}",
                err=True,
            )
            sys.exit(1)
        if time.monotonic() - asked_at > _INSTANCE_SECONDS:
            asked_at = time.monotonic()
            is_gone = _is_gone(submission)
        time.sleep(_POLL_SECONDS)


def _is_gone(submission: Submission) -> bool:
    from gce_backend.config import read_endpoints
    from gce_backend.errors import ComputeError
    from gce_backend.fleet import Fleet

    try:
        fleet = Fleet(submission.project, endpoint=read_endpoints().compute)
        found = fleet.list(run_id=submission.run_id)
    except ComputeError:
        return False  # no answer is no news
    return not [instance for instance in found if not instance.is_stopped]


def _write(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
