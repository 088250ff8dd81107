"""The journal applied by the agent itself, to a tracking server that it may write to.

An optimisation: the journal goes to the bucket in any case, the trainer never waits for this, and
the instance waits for it seconds at most. The agent works like one more client: segment after
segment, each once it is in the bucket, and the run's tag ``gce.journal.applied`` says how far the
server is. So a client that applies the journal takes over where the agent stopped, and the other
way round; both at once repeat a segment at worst, which changes nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from .endpoint import retrying
from .entities import Json
from .errors import CloudError, RelayError, ServerAway
from .forward_files import Files
from .forward_ids import ServerIds, model_tags
from .forward_replay import FINAL_STATUS_TAG, STATUSES, Refusal, Replay
from .forward_secret import Credentials
from .forward_server import APPLIED_TAG, Server, tags_of
from .metadata import MetadataServer
from .segments import Segments
from .spec import Spec
from .storage import Storage

REFUSED_TAG = "gce.journal.refused"
END_REASON_TAG = "gce.end_reason"
TROUBLE_TAG = "gce.forward.trouble"

_SEGMENTS_AT_ONCE = 4  # read, applied and then forgotten, so that memory stays bounded
_REASONS_TAGGED = 3
_PAUSE_S = 1.0
_MOST_PAUSE_S = 15.0
_DENIED_PAUSE_S = 60.0
# At the end of the run: so long without any success, and so long in all.
SETTLE_S = 10.0
SETTLE_MOST_S = 60.0

# MLflow's status for how the run ended; as in the client's table.
_STATUS = {"succeeded": "FINISHED", "cancelled": "KILLED", "deadline": "KILLED"}


class Forwarder:
    """Args:
    journal: the segments of this attempt.
    is_running: whether the trainer has been started.
    say: a line for the run's log.
    note: sets a tag of the run by way of the journal; None as the value removes it.
    """

    def __init__(
        self,
        spec: Spec,
        journal: Segments,
        storage: Storage,
        metadata: MetadataServer,
        *,
        is_running: Callable[[], bool],
        say: Callable[[str], None],
        note: Callable[[str, str | None], None],
    ) -> None:
        assert spec.forward is not None
        self._spec, self._journal, self._storage = spec, journal, storage
        self._is_running, self._say, self._note = is_running, say, note
        credentials = Credentials(spec.forward, metadata)
        self._server = Server(spec.forward.uri, spec.run_id, credentials)
        self._ids = ServerIds(self._server, str(spec.experiment["experiment_id"]))
        self._lock = threading.Lock()  # one applier at a time
        self._stop = threading.Event()
        self._position = -1  # where the server stood when we last knew, and self._ids with it
        self._told_running = False
        self._trouble: tuple[bool, bool] = (False, False)  # is there any, is it a denial
        self._refusals_said = 0

    def start(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="forward").start()

    def settle(self, files: Files, until: float) -> bool:
        """The journal's rest, and the files that lie under provisional ids, at the run's end.

        Returns:
            Whether the server has everything; if not, a client will bring the rest.
        """
        self._stop.set()
        limit = min(until, time.time() + SETTLE_MOST_S)

        def once() -> None:
            self._apply_new()
            if self._position < self._journal.count:
                raise ServerAway(f"segment {self._position + 1} of the journal cannot be read")
            self._ids.load()
            self._move(files, limit)

        return self._within(limit, once)

    def tell(self, status: dict[str, Any]) -> None:
        """How the run ended, once ``status.json`` is in the bucket: the last word to the server."""
        verified = bool(status["verified"])
        reason = str(status["end_reason"]) if verified else "results_unverified"
        end_time = round(float(status["ended_at"]) * 1000)

        def once() -> None:
            run_id = self._spec.run_id
            self._ids.load()
            if verified:
                self._finalize_models()
            tag = {"run_id": run_id, "key": END_REASON_TAG, "value": reason}
            self._post("runs/set-tag", tag)
            ending = {"status": _STATUS.get(reason, "FAILED"), "end_time": end_time}
            self._post("runs/update", {"run_id": run_id, **ending})

        self._within(time.time() + SETTLE_MOST_S, once)

    def _work(self) -> None:
        pause = _PAUSE_S
        while not self._stop.wait(pause):
            try:
                with self._lock:
                    if self._is_due() and not self._stop.is_set():
                        self._apply_new()
                pause = _PAUSE_S
                self._tell_trouble(None)
            except ServerAway as error:
                pause = _DENIED_PAUSE_S if error.denied else min(pause * 2, _MOST_PAUSE_S)
                self._tell_trouble(error)
            except Exception as error:  # an answer that nobody expected must not end this thread
                pause = _MOST_PAUSE_S
                self._tell_trouble(ServerAway(f"{type(error).__name__}: {error}"))

    def _within(self, limit: float, work: Callable[[], None]) -> bool:
        """``work()`` again while the server is away, as long as it takes something now and then."""
        started = time.time()
        if not self._lock.acquire(timeout=SETTLE_S):
            return False  # a request hangs
        self._server.until = limit
        try:
            while True:
                try:
                    work()
                    return True
                except ServerAway as error:
                    alive = max(started, self._server.written_at)
                    if error.denied or time.time() > min(limit, alive + SETTLE_S):
                        self._say_left(error)
                        return False
                time.sleep(0.5)
        except Exception as error:  # whatever it is, the run ends as it would without forwarding
            self._say_left(error)
            return False
        finally:
            self._lock.release()

    def _say_left(self, error: Exception) -> None:
        self._say(
            f"the tracking server does not have everything yet: {error}. What is left is in the "
            f"bucket; bring it there with: mlflow-gce sync {self._spec.run_id}"
        )

    # -- segments -----------------------------------------------------------------------------

    def _is_due(self) -> bool:
        if self._is_running() and not self._told_running:
            return True
        return self._position < max(0, self._journal.count)

    def _apply_new(self) -> None:
        """Apply what has come to the bucket since anybody's last time. Raises ServerAway."""
        while True:
            run = self._server.run()
            self._mark_running(run)
            tags = tags_of(run)
            position = int(tags.get(APPLIED_TAG, "0"))
            if position != self._position:  # the first time, a failed one, or another applier
                self._ids.load()
            self._position = -1
            pieces = self._pieces(position)
            if pieces:
                self._apply(pieces, position + len(pieces), tags.get(REFUSED_TAG))
            self._position = position + len(pieces)
            if len(pieces) < _SEGMENTS_AT_ONCE:
                return

    def _apply(self, pieces: list[bytes], last: int, account: str | None) -> None:
        refused: list[Refusal] = []
        replay = Replay(self._server, self._ids, refused.append)
        for piece in pieces:
            for line in piece.splitlines():
                replay.take(json.loads(line))
        replay.flush()
        tags = [{"key": APPLIED_TAG, "value": str(last)}]
        if refused:
            refused.sort(key=lambda refusal: refusal.seq)
            tags.append({"key": REFUSED_TAG, "value": _account(account, refused)})
        for refusal in refused[: max(0, _REASONS_TAGGED - self._refusals_said)]:
            self._refusals_said += 1
            self._say(f"the tracking server refuses {refusal.what}: {refusal.reason}")
        # In one write, so that both are counted once even if this process dies here.
        self._post("runs/log-batch", {"run_id": self._spec.run_id, "tags": tags})

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
        piece = self._journal.read(number)
        is_earlier = self._spec.attempt > 1 and number < (self._journal.first or number + 1)
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
                self._post("runs/update", {"run_id": self._spec.run_id, "status": "RUNNING"})
            self._told_running = True

    # -- the end ------------------------------------------------------------------------------

    def _move(self, files: Files, until: float) -> None:
        root = self._spec.experiment_location
        moves = [
            (f"{root}/models/{provisional}/artifacts", info["artifact_uri"])
            for provisional, info in self._ids.models.items()
        ]
        moves += [
            (f"{root}/{provisional}/artifacts", run["info"]["artifact_uri"])
            for provisional, run in self._ids.runs.items()
        ]
        for source, target in moves:
            files.move(source, target, self._ids.translate, until)

    def _finalize_models(self) -> None:
        """Models whose files are in place become what the trainer made of them."""
        for info in self._ids.models.values():
            model_id, final = info["model_id"], model_tags(info).get(FINAL_STATUS_TAG)
            status = next((name for name, short in STATUSES.items() if short == final), None)
            if status is None:
                continue  # the trainer died while it logged it: PENDING, as without us
            path = f"logged-models/{model_id}"
            self._send("PATCH", path, {"model_id": model_id, "status": status})
            self._send("DELETE", f"{path}/tags/{FINAL_STATUS_TAG}", {})

    # -- helpers ------------------------------------------------------------------------------

    def _post(self, path: str, body: Json) -> None:
        self._send("POST", path, body)

    def _send(self, method: str, path: str, body: Json) -> None:
        self._server.read(lambda: self._server.send(method, path, body))

    def _tell_trouble(self, error: ServerAway | None) -> None:
        """Once when it begins and once when it is over; a denial also as a tag of the run."""
        before, self._trouble = self._trouble, (error is not None, bool(error and error.denied))
        if before == self._trouble:
            return
        if error is None:
            self._say("the tracking server takes what the training logs")
        else:
            self._say(
                f"nothing is forwarded to the tracking server: {error}. The training goes on, and "
                "what it logs is in the bucket for a client to bring"
            )
        if before[1] or self._trouble[1]:
            try:
                self._note(TROUBLE_TAG, str(error)[:1000] if error and error.denied else None)
            except (RelayError, OSError) as failed:
                self._say(f"the tag {TROUBLE_TAG} could not be set: {failed}")


def _account(before: str | None, new: list[Refusal]) -> str:
    """The tag's JSON: how many were refused, and the first few with their reasons."""
    account: dict[str, Any] = json.loads(before) if before else {"count": 0, "first": []}
    account["count"] += sum(refusal.count for refusal in new)
    for refusal in new[: max(0, _REASONS_TAGGED - len(account["first"]))]:
        account["first"].append(
            {"record": refusal.seq, "what": refusal.what[:200], "reason": refusal.reason[:300]}
        )
    return json.dumps(account, ensure_ascii=False)
