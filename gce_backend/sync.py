"""A run's journal, from the bucket into the MLflow store: in order, once, resumable.

The run's tag ``gce.journal.applied`` says how far the store is. A segment is applied whole before
the tag moves on; applied again after a crash, it changes nothing. Whoever holds the store's
credentials may do this, live or later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gce_backend.agent.records import APPLIED_TAG, FINAL_STATUS_TAG, Refusal
from gce_backend.agent.refusals import REFUSED_TAG, account
from gce_backend.errors import TrackingError
from gce_backend.lease import Lease, LeaseLost
from gce_backend.provisional import ProvisionalIds
from gce_backend.refusals import Teller, keep
from gce_backend.relocation import Move, relocate
from gce_backend.replay import Replay
from gce_backend.run_store import RunStore, brief_retries

if TYPE_CHECKING:
    from gce_backend.agent.paths import RunPaths
    from gce_backend.storage import Storage

# Read, applied and then forgotten, so that memory stays bounded: a segment is 1 MiB at most. Many
# small ones, as hours of slow training leave them, go together; one alone is asked for first, since
# a client that follows mostly finds none.
_FEWEST_SEGMENTS, _MOST_SEGMENTS = 1, 16
_ENOUGH_RECORDS = 10_000
_LEASE_PAUSE_SECONDS = 0.5
_REFUSALS_KEPT = 1000


class JournalApplier:
    """Applies one run's journal to one store; threads wait for each other.

    Args:
        storage: the bucket with the journal.
        tracking_uri: an MLflow store, as MLflow resolved it: sqlite file, database or server.
        run_id: the run, which exists in that store.
        warn: told of the first writes that the store does not accept.

    Every method raises TrackingError (transient where it is worth another try) when the store
    does not answer, and StorageError when the bucket does not. Nothing is lost and nothing is
    doubled by calling again, or by another client that applies the same journal: a lease in the
    bucket lets one at a time do it.
    """

    def __init__(
        self,
        storage: Storage,
        paths: RunPaths,
        *,
        tracking_uri: str,
        run_id: str,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run_id = run_id
        self._storage = storage
        self._paths = paths
        self._lock = threading.RLock()
        self._store = RunStore(tracking_uri, run_id)
        self._ids = ProvisionalIds(self._store)
        self._known_position = -1  # the position at which self._ids was up to date
        self._reached: int | None = None  # the store is there at least; None: ask it
        self._lease = Lease(storage, paths.sync_lock)
        self._depth = 0  # of blocks that need the lease
        self._holds = False
        self._hold_until = 0.0  # by the monotonic clock
        self._redo_after: int | None = None  # applied further while the lease was lost
        # What the store did not accept, since this object was made; the run's tag counts on.
        self.refused: list[Refusal] = []
        self._pending: list[Refusal] = []  # found, and not yet on the tag
        self._teller = Teller(warn)

    def apply_new(self, *, patience: float = 120.0, hold: float = 0.0) -> int:
        """Apply what has come to the bucket since the last call, or anybody's last call.

        Args:
            patience: seconds to wait while another client applies it; with 0 it is left to that
                client, and nothing is raised.
            hold: seconds for which the right to apply is kept for further calls, since one name in
                the bucket takes about one write a second; `let_go` ends it.

        Returns:
            The number of records that are now in the store or set aside as refused.
        """
        with self._lock, brief_retries():
            if not self._has_new():
                self._give_back_in_time()
                return 0
            with self._alone(patience, hold) as is_ours:
                records = 0
                while is_ours and (number := self._apply_some()) is not None:
                    records += number
                return records

    def finish(self, *, patience: float = 120.0) -> int:
        """Apply the rest and put everything provisional in its place: once the run has ended.

        Files under provisional ids move inside the bucket to where the store has them, the
        manifest with them, and models become READY only then. Call it after the results have
        been verified, and before anybody relies on the models; calling it again is harmless.

        Returns:
            As `apply_new`.
        """
        with self._lock, brief_retries(), self._alone(max(patience, 1.0)):
            self._reached = None
            records = self.apply_new()
            run = self._store.run()
            self._ids.load()
            moves = [*self._model_moves(run.info.experiment_id), *self._run_moves()]
            relocate(self._storage, self._paths, moves, self._ids.translate)
            self._finalize_models()
            return records

    def let_go(self) -> None:
        """Let others apply the journal at once, after calls with ``hold``."""
        with self._lock:
            self._hold_until = 0.0
            self._give_back_in_time()

    def set_final_status(self, status: str, end_time_ms: int) -> None:
        """Write how the run ended, overriding whatever the trainer said.

        Args:
            status: MLflow's name: FINISHED, FAILED or KILLED.
            end_time_ms: when the trainer's process ended, unix milliseconds.
        """
        from mlflow.entities import RunStatus

        with self._lock, brief_retries():
            self._store.run()
            value = RunStatus.from_string(status)
            self._store.read(
                lambda: self._store.store.update_run_info(
                    self._store.run_id, value, end_time_ms, None
                )
            )

    # ------------------------------------------------------------------ one at a time

    @contextmanager
    def _alone(self, patience: float, hold: float = 0.0) -> Iterator[bool]:
        """Hold the lease, or wait for it; False if another has it and there is no patience."""
        if self._depth == 0:
            if not self._taken(patience, hold):
                yield False
                return
            if hold == 0:
                self._hold_until = 0.0
        self._depth += 1
        try:
            yield True
        finally:
            self._depth -= 1
            self._give_back_in_time()

    def _give_back_in_time(self) -> None:
        if self._holds and self._depth == 0 and time.monotonic() >= self._hold_until:
            self._holds = False
            self._lease.give_back()

    def _taken(self, patience: float, hold: float) -> bool:
        if self._holds:
            try:
                self._lease.check()
                return True
            except LeaseLost:  # between two calls, so nothing was written meanwhile
                self._holds = False
                self._lease.give_back()
        end = time.monotonic() + patience
        while not self._lease.take():
            if patience <= 0:
                return False
            if time.monotonic() > end:
                busy = TrackingError(
                    f"another client has been applying the journal of run {self._store.run_id} for "
                    f"{patience:.0f} s, and only one at a time may. What the training logged is "
                    f"safe in the bucket. Look again with: mlflow-gce sync {self._store.run_id}"
                )
                busy.transient = True
                raise busy
            time.sleep(_LEASE_PAUSE_SECONDS)
        self._holds, self._hold_until = True, time.monotonic() + hold
        return True

    # ------------------------------------------------------------------ segments

    def _has_new(self) -> bool:
        """Where nothing follows what was once applied, nobody else has applied more either: the
        store, which takes longer to answer than the bucket, need not be asked."""
        if self._reached is None:
            self._reached = self._position()
        return self._storage.exists(self._paths.journal(self._reached + 1))

    def _position(self) -> int:
        """How far the store is; where the lease was lost, no further than before that."""
        position = self._store.position()
        return position if self._redo_after is None else min(position, self._redo_after)

    def _apply_some(self) -> int | None:
        """Apply the next few segments; None when there are none."""
        position = self._reached = self._position()
        if position != self._known_position:  # the first call, a failed one, or another client
            self._ids.load()
        records, last = self._read_some(position)
        if last == position:
            self._known_position = position
            return None
        self._known_position = -1
        self._pending = []
        try:
            self._apply(records)
            self._lease.check()
            self._advance(last, records)
            self._lease.check()
        except LeaseLost:
            self._redo_after = position
            raise
        self._redo_after = None
        self._known_position = self._reached = last
        return len(records)

    def _read_some(self, position: int) -> tuple[list[dict[str, Any]], int]:
        """The next records, and the number of the last segment they come from."""
        records: list[dict[str, Any]] = []
        last, limit = position, _FEWEST_SEGMENTS
        while len(records) < _ENOUGH_RECORDS and limit <= _MOST_SEGMENTS:
            segments = self._storage.read_journal(self._paths, last, limit=limit)
            for last, found in segments:  # noqa: B007
                records += found
            if len(segments) < limit:
                break
            limit *= 2
        return records, last

    def _apply(self, records: list[dict[str, Any]]) -> None:
        replay = Replay(self._store, self._ids, self._pending.append)
        for record in records:
            replay.take(record)
        replay.flush()

    def _advance(self, number: int, records: list[dict[str, Any]]) -> None:
        """Move the position and the account of refusals in one write, so that both are counted
        once even if this process dies here."""
        from mlflow.entities import RunTag

        tags = [RunTag(APPLIED_TAG, str(number))]
        if self._pending:
            self._pending.sort(key=lambda refusal: refusal.seq)
            run = self._store.run()
            keep(self._storage, run.info.artifact_uri, number, self._pending, records)
            tags.append(RunTag(REFUSED_TAG, account(run.data.tags.get(REFUSED_TAG), self._pending)))
        self._store.read(
            lambda: self._store.store.log_batch(
                self._store.run_id, metrics=[], params=[], tags=tags
            )
        )
        self._teller.tell(self._pending)
        room = _REFUSALS_KEPT - len(self.refused)
        self.refused += self._pending[:room]
        self._pending = []

    # ------------------------------------------------------------------ the end

    def _model_moves(self, experiment_id: str) -> list[Move]:
        root = self._location(experiment_id) if self._ids.models else ""
        return [
            Move(f"{root}/models/{provisional}/artifacts", model.artifact_location)
            for provisional, model in self._ids.models.items()
        ]

    def _run_moves(self) -> list[Move]:
        return [
            Move(
                f"{self._location(run.info.experiment_id)}/{provisional}/artifacts",
                run.info.artifact_uri,
            )
            for provisional, run in self._ids.runs.items()
        ]

    def _location(self, experiment_id: str) -> str:
        experiment = self._store.read(lambda: self._store.store.get_experiment(experiment_id))
        location = str(experiment.artifact_location).rstrip("/")
        if not location.startswith("gs://"):
            raise TrackingError(
                f"experiment {experiment.name!r} keeps its artifacts in {location}, so the files "
                f"of run {self._store.run_id} cannot be moved to their models and child runs. "
                "They stay in the bucket where they are"
            )
        return location

    def _finalize_models(self) -> None:
        from mlflow.entities import LoggedModelStatus

        store = self._store.store
        for model in self._ids.models.values():
            status = model.tags.get(FINAL_STATUS_TAG)
            if status is None:
                continue  # the trainer died while it logged it: PENDING, as without us

            def finalize(model_id: str = model.model_id, status: str = status) -> None:
                store.finalize_logged_model(model_id, LoggedModelStatus(status))
                store.delete_logged_model_tag(model_id, FINAL_STATUS_TAG)

            self._store.read(finalize)
