"""A run's journal on its way to the tracking server: segment after segment, each applied once.

The run's tag ``gce.journal.applied`` says how far the server is. Segments are taken once they are
in the bucket, and by their numbers there, so that a client takes over where the agent stopped, and
the other way round; a lease in the bucket lets one at a time do it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .endpoint import retrying
from .entities import Json
from .errors import CloudError, ServerAway
from .forward_ids import ServerIds
from .forward_lease import Lease, LeaseTaken
from .forward_replay import Replay
from .forward_server import Server, tags_of
from .records import APPLIED_TAG, Refusal
from .refusals import DIRECTORY, REFUSED_TAG, account, artifact
from .segments import Segments
from .spec import Spec
from .storage import Storage

_SEGMENTS_AT_ONCE = 4  # read, applied and then forgotten, so that memory stays bounded
_REASONS_TOLD = 3


class ServerJournal:
    """Args:
    segments: of this attempt.
    is_running: whether the trainer has been started.
    say: a line for the run's log.
    """

    def __init__(
        self,
        server: Server,
        spec: Spec,
        segments: Segments,
        storage: Storage,
        *,
        is_running: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self._server, self._spec, self._segments, self._storage = server, spec, segments, storage
        self._is_running, self._say = is_running, say
        self.ids = ServerIds(server, str(spec.experiment["experiment_id"]))
        owner = f"agent of attempt {spec.attempt}"
        self._lease = Lease(storage, spec.bucket, spec.paths.sync_lock, owner)
        self._position = -1  # where the server stood when we last knew, and self.ids with it
        self._redo_after: int | None = None  # applied further while the lease was lost
        self._told_running = False
        self._refusals_said = 0

    @property
    def is_due(self) -> bool:
        """Whether there is anything to tell the server; asks nobody."""
        if self._is_running() and not self._told_running:
            return True
        return not self.is_complete

    @property
    def is_complete(self) -> bool:
        """Whether the server has all that this attempt has brought to the bucket."""
        return self._position >= self._segments.count

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else applies the journal meanwhile. Raises LeaseTaken."""
        self._lease.take()
        try:
            yield
        finally:
            self._lease.give_back()

    def apply(self) -> None:
        """Apply what has come to the bucket since anybody's last time. Raises ServerAway."""
        while True:
            run = self._server.run()
            self._mark_running(run)
            tags = tags_of(run)
            position = int(tags.get(APPLIED_TAG, "0"))
            if self._redo_after is not None:
                position = min(position, self._redo_after)
            if position != self._position:  # the first time, a failed one, or another applier
                self.ids.load()
            self._position = -1
            pieces = self._pieces(position)
            if pieces:
                self._apply(pieces, position, run)
            self._position = position + len(pieces)
            if len(pieces) < _SEGMENTS_AT_ONCE:
                return

    def _apply(self, pieces: list[bytes], position: int, run: Json) -> None:
        refused: list[Refusal] = []
        replay = Replay(self._server, self.ids, refused.append)
        records = [json.loads(line) for piece in pieces for line in piece.splitlines()]
        for record in records:
            replay.take(record)
        replay.flush()
        refused.sort(key=lambda refusal: refusal.seq)
        last = position + len(pieces)
        if refused:
            self._set_aside(refused, records, last, str(run["info"]["artifact_uri"]))
        try:
            self._lease.check()
            self._advance(last, refused, tags_of(run).get(REFUSED_TAG))
            self._lease.check()
        except LeaseTaken:
            self._redo_after = position
            raise
        self._redo_after = None

    def _set_aside(
        self, refused: list[Refusal], records: list[Json], last: int, artifact_uri: str
    ) -> None:
        self._keep(artifact_uri, *artifact(last, refused, records))
        for refusal in refused[: max(0, _REASONS_TOLD - self._refusals_said)]:
            self._refusals_said += 1
            self._say(
                f"the tracking server refuses {refusal.what}: {refusal.reason}. It is set aside "
                f"among the run's artifacts: {DIRECTORY}/"
            )

    def _keep(self, artifact_uri: str, path: str, content: bytes) -> None:
        bucket, _, root = artifact_uri.removeprefix("gs://").partition("/")
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        with suppress(CloudError):  # the journal itself stays in the bucket
            self._storage.put(bucket, f"{root}/{path}", content, md5=md5)

    def _advance(self, last: int, refused: list[Refusal], before: str | None) -> None:
        """In one write, so that both are counted once even if this process dies here."""
        tags = [{"key": APPLIED_TAG, "value": str(last)}]
        if refused:
            tags.append({"key": REFUSED_TAG, "value": account(before, refused)})
        body = {"run_id": self._spec.run_id, "tags": tags}
        self._server.read(lambda: self._server.send("POST", "runs/log-batch", body))

    def _pieces(self, position: int) -> list[bytes]:
        pieces: list[bytes] = []
        while len(pieces) < _SEGMENTS_AT_ONCE:
            piece = self._piece(position + len(pieces) + 1)
            if piece is None:
                break
            pieces.append(piece)
        return pieces

    def _piece(self, number: int) -> bytes | None:
        """A segment: this attempt's from the disk, an earlier one's from the bucket."""
        piece = self._segments.read(number)
        is_earlier = self._spec.attempt > 1 and number < (self._segments.first or number + 1)
        if piece is not None or not is_earlier:
            return piece
        name = self._spec.paths.journal(number)
        try:
            return retrying(lambda: self._storage.get(self._spec.bucket, name), time.time() + 5)
        except CloudError as error:
            if error.status == 404:
                return None
            raise ServerAway(str(error)) from error

    def _mark_running(self, run: Json) -> None:
        """The run's status says that the training has begun; never that it begins again."""
        if self._is_running() and not self._told_running:
            if run["info"].get("status") == "SCHEDULED":
                body = {"run_id": self._spec.run_id, "status": "RUNNING"}
                self._server.read(lambda: self._server.send("POST", "runs/update", body))
            self._told_running = True
