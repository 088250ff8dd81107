"""The MLflow store as the journal of one run meets it: reached quickly, judged fairly.

A write that fails is either the store's trouble (`TrackingError`: the caller tries again later)
or the write's own (`Refused`: it will never be accepted). The status of the reply alone does not
tell them apart - MLflow answers 400 for a lost PostgreSQL connection and 500 for a value that a
column cannot hold - so a small write that is known to be good decides.
"""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from gce_backend.agent.records import APPLIED_TAG, Refused
from gce_backend.errors import TrackingError
from gce_backend.urls import without_credentials

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.tracking.abstract_store import AbstractStore

T = TypeVar("T")

SQLITE = re.compile(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?")  # with the file's path
_PROBE_TAG = "gce.journal.probe"

# How often a write may fail, each time with a good write succeeding after it, before it is refused.
_TRIES_CLIENT_ERROR = 2
_TRIES_SERVER_ERROR = 3
# What MLflow's own code raises over a value that it did not expect, or over an answer that is none.
_STUMBLES = (TypeError, ValueError, LookupError, AttributeError)
BUSY = (408, 429)

# MLflow's client repeats a call for 247 s when a server is away. Without its own repetitions it
# fails at once when refused and after the timeout when nothing answers; whoever applies a journal
# comes back anyway. Not repeating also spares `runs/create` its duplicates after a lost reply.
_BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_brief_lock = threading.Lock()
_brief_depth = 0
_brief_before: dict[str, str] = {}

# SQLAlchemy has fifteen connections to a database, and a call that waits for one fails after 30 s;
# MLflow's server answers four calls at a time. The client of many runs waits here instead.
_CALLS_AT_ONCE = 8
_turns = threading.BoundedSemaphore(_CALLS_AT_ONCE)
_held = threading.local()


@contextmanager
def turn() -> Iterator[None]:
    """Wait for one of this process's turns at calling a store; who has one does not wait again."""
    depth: int = getattr(_held, "depth", 0)
    if depth == 0:
        _turns.acquire()
    _held.depth = depth + 1
    try:
        yield
    finally:
        _held.depth = depth
        if depth == 0:
            _turns.release()


@contextmanager
def brief_retries() -> Iterator[None]:
    """While inside, one MLflow call ends within 20 s. The one place that sets these variables.

    MLflow reads them from the environment at every call and has no other way to be told, so they
    hold for the whole process; they are put back when the last thread leaves. One that was not set
    is MLflow's own default then, and not removed: `requests` walks through the environment in other
    threads, and trips over a name that vanishes meanwhile.
    """
    from mlflow import environment_variables

    global _brief_depth
    with _brief_lock:
        if _brief_depth == 0:
            for name in _BRIEF:
                default = str(getattr(environment_variables, name).default)
                _brief_before[name] = os.environ.get(name, default)
            os.environ.update(_BRIEF)
        _brief_depth += 1
    try:
        yield
    finally:
        with _brief_lock:
            _brief_depth -= 1
            if _brief_depth == 0:
                os.environ.update(_brief_before)


class RunStore:
    """One run in one store.

    Args:
        uri: sqlite file, another database, or a server.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri = uri
        self.run_id = run_id
        self._store: AbstractStore | None = None

    @property
    def store(self) -> AbstractStore:
        """MLflow's own store object: the REST bodies' fields fit its methods exactly."""
        self._check_sqlite_file()
        if self._store is None:
            from mlflow.tracking._tracking_service.utils import _get_store

            self._store = self._reaching(lambda: _get_store(self.uri))
        return self._store

    def run(self) -> Run:
        """The run itself, which must be there and not deleted.

        Raises:
            TrackingError: the store does not answer, or the run cannot be written to.
        """
        run = self._reaching(lambda: self.store.get_run(self.run_id))
        if run.info.lifecycle_stage != "active":
            raise TrackingError(
                f"run {self.run_id} in {without_credentials(self.uri)} is deleted, and takes no "
                "data. Its journal stays in the bucket. "
                f"Run: mlflow runs restore --run-id {self.run_id}"
            )
        return run

    def write(self, call: Callable[[], T]) -> T:
        """Make a write.

        Raises:
            Refused: the store keeps refusing it while it accepts another.
            TrackingError: the store is away, or accepts nothing.
        """
        from mlflow.exceptions import MlflowException

        failures = 0
        while True:
            try:
                with turn():
                    return call()
            except MlflowException as error:
                failures += 1
                self._prove_writable()
                status = int(error.get_http_status_code())
                if status in BUSY:
                    raise self._away(error) from error
                is_client_error = 400 <= status < 500
                if failures >= (_TRIES_CLIENT_ERROR if is_client_error else _TRIES_SERVER_ERROR):
                    raise Refused(_sentence(error)) from error
            except _STUMBLES as error:
                failures += 1
                self._prove_writable()
                if failures >= _TRIES_CLIENT_ERROR:
                    raise Refused(f"{type(error).__name__}: {_sentence(error)}") from error

    def read(self, call: Callable[[], T]) -> T:
        """Make a call that cannot be at fault itself. Raises TrackingError."""
        return self._reaching(call)

    def position(self, run: Run | None = None) -> int:
        """The number of the last journal segment that is in the store; 0 before the first."""
        run = run or self.run()
        return int(run.data.tags.get(APPLIED_TAG, "0"))

    # ------------------------------------------------------------------ helpers

    def _prove_writable(self) -> None:
        """Write a tag and take it away again. Raises TrackingError.

        A new value every time: the SQL store sends no write for a value that it has.
        """
        from mlflow.entities import RunTag

        self.run()
        tag = RunTag(_PROBE_TAG, uuid.uuid4().hex)
        self._reaching(lambda: self.store.set_tag(self.run_id, tag))
        self._reaching(lambda: self.store.delete_tag(self.run_id, _PROBE_TAG))

    def _reaching(self, call: Callable[[], T]) -> T:
        from mlflow.exceptions import MlflowException

        try:
            with turn():
                return call()
        except MlflowException as error:
            raise self._away(error) from error
        except json.JSONDecodeError as error:  # a page of whatever stands before the store
            raise self._away(error) from error

    def _away(self, error: Any) -> TrackingError:
        is_answer = not isinstance(error, json.JSONDecodeError)
        status = int(error.get_http_status_code()) if is_answer else 502
        raised = TrackingError(
            f"run {self.run_id} in {without_credentials(self.uri)}: the tracking store answered "
            f"{status if is_answer else 'no JSON'}: {_sentence(error)}. What the "
            f"training logged is safe in the bucket. Apply it later with: mlflow-gce sync "
            f"{self.run_id}"
        )
        raised.transient = status >= 500 or status in BUSY
        return raised

    def _check_sqlite_file(self) -> None:
        """SQLite makes an empty database where its file has been moved away; MLflow fills it."""
        match = SQLITE.fullmatch(self.uri)
        if match and match[1] != ":memory:" and not os.path.exists(match[1]):
            raised = TrackingError(
                f"run {self.run_id}: the tracking store {match[1]!r} is not there. What the "
                "training logged is safe in the bucket. Put the file back, then run: "
                f"mlflow-gce sync {self.run_id}"
            )
            raised.transient = True
            raise raised


def _sentence(error: Exception) -> str:
    """MLflow's message on one line, cut, without credentials that a URL in it may carry."""
    return without_credentials(" ".join(str(error).split()))[:300].rstrip(".")
