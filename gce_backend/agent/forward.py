"""The journal applied by the agent itself, to a tracking server that it may write to.

An optimisation: the journal goes to the bucket in any case, the trainer never waits for this, and
the instance waits for it seconds at most. The agent works like one more client
(``forward_journal.py``); what it did not get done, a client does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from . import forward_facts
from .entities import Json
from .errors import RelayError, ServerAway
from .forward_files import Files
from .forward_ids import model_tags
from .forward_journal import ServerJournal
from .forward_lease import EXPIRES_S, LeaseTaken
from .forward_replay import STATUSES
from .forward_secret import Credentials
from .forward_server import Server
from .metadata import MetadataServer
from .records import FINAL_STATUS_TAG
from .segments import Segments
from .spec import Spec
from .storage import Storage

END_REASON_TAG = "gce.end_reason"
TROUBLE_TAG = "gce.forward.trouble"

_PAUSE_S = 1.0
_HOLD_S = 5.0
_MOST_PAUSE_S = 15.0
_DENIED_PAUSE_S = 60.0
# At the end of the run: so long without any success, and so long in all.
SETTLE_S = 10.0
SETTLE_MOST_S = 60.0

# MLflow's status for how the run ended; as in the client's table.
_STATUS = {"succeeded": "FINISHED", "cancelled": "KILLED", "deadline": "KILLED"}


class Forwarder:
    """Args:
    segments: the journal's, of this attempt.
    is_running: whether the trainer has been started.
    say: a line for the run's log.
    note: sets a tag of the run by way of the journal; None as the value removes it.
    """

    def __init__(
        self,
        spec: Spec,
        segments: Segments,
        storage: Storage,
        metadata: MetadataServer,
        *,
        is_running: Callable[[], bool],
        say: Callable[[str], None],
        note: Callable[[str, str | None], None],
    ) -> None:
        assert spec.forward is not None
        self._spec, self._say, self._note = spec, say, note
        credentials = Credentials(spec.forward, metadata)
        self._server = Server(spec.forward.uri, spec.run_id, credentials)
        self._journal = ServerJournal(
            self._server, spec, segments, storage, is_running=is_running, say=say
        )
        self._ids = self._journal.ids
        self._lock = threading.Lock()  # for the thread, or for the end of the run
        self._stop = threading.Event()
        self._trouble: tuple[bool, bool] = (False, False)  # is there any, is it a denial

    def start(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="forward").start()

    def settle(self, files: Files, until: float) -> bool:
        """The journal's rest, and the files that lie under provisional ids, at the run's end.

        Returns:
            Whether the server has everything; if not, a client will bring the rest.
        """
        self._stop.set()
        limit = min(until, time.time() + SETTLE_MOST_S)

        def work() -> None:
            with self._journal.alone():
                self._journal.apply()
                if not self._journal.is_complete:
                    raise ServerAway("a segment of the journal cannot be read")
                self._ids.load()
                self._move(files, limit)

        return self._within(limit, work)

    def tell(self, status: dict[str, Any]) -> None:
        """How the run ended, once ``status.json`` is in the bucket: the last word to the server."""
        verified = bool(status["verified"])
        reason = str(status["end_reason"]) if verified else "results_unverified"
        end_time = round(float(status["ended_at"]) * 1000)

        def work() -> None:
            run_id = self._spec.run_id
            if verified:
                self._finalize_models()
            forward_facts.record(self._server, status)
            tag = {"run_id": run_id, "key": END_REASON_TAG, "value": reason}
            self._send("POST", "runs/set-tag", tag)
            ending = {"status": _STATUS.get(reason, "FAILED"), "end_time": end_time}
            self._send("POST", "runs/update", {"run_id": run_id, **ending})

        self._within(time.time() + SETTLE_MOST_S, work)

    def _work(self) -> None:
        pause = _PAUSE_S
        while not self._stop.wait(pause):
            try:
                if self._journal.is_due:
                    with self._lock:
                        self._apply_for_a_while()
                pause = _PAUSE_S
                self._tell_trouble(None)
            except LeaseTaken:  # a client is at it, which is as well
                pause = _PAUSE_S
            except ServerAway as error:
                pause = _DENIED_PAUSE_S if error.denied else min(pause * 2, _MOST_PAUSE_S)
                self._tell_trouble(error)
            except Exception as error:  # an answer that nobody expected must not end this thread
                pause = _MOST_PAUSE_S
                self._tell_trouble(ServerAway(f"{type(error).__name__}: {error}"))

    def _apply_for_a_while(self) -> None:
        """The lease is kept over some rounds, since its name takes about one write a second, and
        given back between, so that a client gets its turn."""
        if self._stop.is_set():
            return
        with self._journal.alone():
            until = time.monotonic() + _HOLD_S
            self._journal.apply()
            while time.monotonic() < until and not self._stop.wait(_PAUSE_S):
                if self._journal.is_due:
                    self._journal.apply()

    def _within(self, limit: float, work: Callable[[], None]) -> bool:
        """``work()`` again while the server is away, as long as it takes something now and then."""
        started = time.time()
        if not self._lock.acquire(timeout=SETTLE_S):
            self._say_left(ServerAway("it does not answer"))
            return False
        self._server.until = limit
        try:
            while True:
                try:
                    work()
                    return True
                except ServerAway as error:
                    patience = SETTLE_S + (EXPIRES_S if isinstance(error, LeaseTaken) else 0)
                    alive = max(started, self._server.written_at)
                    if error.denied or time.time() > min(limit, alive + patience):
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
        """Models whose files are in place become what the trainer made of them.

        The lease is held for these requests alone: a client that follows deletes this instance
        about now, and would wait for a lease that nobody gives back.
        """
        self._ids.load()
        final = {
            info["model_id"]: status
            for info in self._ids.models.values()
            for status, short in STATUSES.items()
            # Without the tag the trainer died while it logged it: PENDING, as without us.
            if model_tags(info).get(FINAL_STATUS_TAG) == short
        }
        if not final:
            return
        with self._journal.alone():
            for model_id, status in final.items():
                path = f"logged-models/{model_id}"
                self._send("PATCH", path, {"model_id": model_id, "status": status})
                self._send("DELETE", f"{path}/tags/{FINAL_STATUS_TAG}", {})

    def _send(self, method: str, path: str, body: Json) -> None:
        self._server.read(lambda: self._server.send(method, path, body))

    # -- trouble ------------------------------------------------------------------------------

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
