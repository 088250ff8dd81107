"""The order of things on the instance, from the spec to the instance's own deletion.

::

    fetching ──▶ environment ──▶ running ──▶ collecting ──▶ status.json ──▶ delete myself
        └───────────────┴─────────────┴─── cancelled, deadline, errors ──▶ collecting

Two rules: whatever happens, what there is gets collected; and ``status.json`` is written last,
once, after everything else is in the bucket. Each step looks first whether it was done before a
restart.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from typing import Any

from .cloud import Cloud
from .collecting import Collector, Results
from .compute import Instance, power_off
from .endpoint import retrying
from .errors import CloudError
from .files import read_json, write_json
from .forward import Forwarder
from .forward_files import Files
from .heartbeat import Heartbeat
from .log import RunLog, to_console
from .process import Trainer
from .shipping import Shipping
from .spec import Spec
from .spool import Spool
from .state import State
from .stop import NOTICE_S, PREEMPTED, Stop, Watch
from .tracking import Tracking
from .training import Training
from .uploader import Uploader

# Collecting goes on so long after the trainer's end, even past the deadline: the instance's own
# limit (maxRunDuration) lies a rescue window behind the deadline.
COLLECT_AT_LEAST_S = 300.0
_DELETE_PATIENCE_S = 300.0
# From the notice of a preemption to the end are 30 seconds.
_LEAVE_S = 20.0


class Attempt:
    """One attempt of one run, on this instance."""

    def __init__(self, cloud: Cloud, spec: Spec, state: State) -> None:
        self._cloud, self._spec, self._state = cloud, spec, state
        state.belong_to(spec.run_id, spec.attempt)
        self._instance = Instance(cloud.metadata, cloud.identity)
        self._log = RunLog(state.log)
        self._over = threading.Event()
        self._stop = Stop()
        self._leaving = threading.Event()
        self._reported = threading.Event()  # status.json is written
        self._uploader: Uploader | None = None
        self._tracking: Tracking | None = None
        self._shipping = Shipping(cloud.storage, spec, state, self._log)
        self._forwarder = self._make_forwarder() if spec.forward else None
        self._heartbeat = Heartbeat(
            cloud.storage, spec.bucket, spec.paths.heartbeat, self._describe
        )

    def run(self) -> None:
        """All of it. Returns when there is nothing left to do on this instance."""
        self._heartbeat.start()
        status = self._earlier_status()
        if status is None:
            self._enter("fetching")
            status = self._make_and_collect()
            with contextlib.suppress(OSError):  # a full disk; the bucket has it
                write_json(self._state.status, status)
        self._reported.set()
        if self._forwarder is not None and status.get("forwarded"):
            self._forwarder.tell(status)
        self._leave(status)
        self._heartbeat.stop()

    def leave(self, exit_code: int) -> None:
        """The machine goes down, or the agent is replaced: bring to the bucket what can be brought
        in the time there is, and end the process. The disk has all of it anyway.

        A preempted instance's disk is lost: its run ends here, with a status of its own.
        """
        if not self._leaving.is_set():
            self._leaving.set()
            threading.Thread(target=self._flush_and_exit, args=(exit_code,), daemon=True).start()

    def _flush_and_exit(self, exit_code: int) -> None:
        until = time.time() + _LEAVE_S
        try:
            if self._cloud.metadata.preempted():
                self._stop.set(PREEMPTED)
            if self._stop.is_set() or self._state.memory.ending is not None:
                self._reported.wait(NOTICE_S)  # the run is on its way to its status
                return
            trainer = Trainer(self._state.trainer, self._log)
            while time.time() < until:
                running = trainer.find() and trainer.exit_code is None
                self._shipping.send_all(until)
                pending = self._uploader.drain(time.time()) if self._uploader else []
                if not running and not pending:
                    break
                time.sleep(0.2)
        finally:
            os._exit(exit_code)

    def _make_and_collect(self) -> dict[str, Any]:
        spec, storage = self._spec, self._cloud.storage
        permission = threading.Thread(target=self._test_permission, daemon=True, name="permission")
        permission.start()
        self._watch()
        spool = Spool(self._state.spool, self._log.say)
        journal = self._shipping.segments["journal"]
        uploader = Uploader(spool, storage, self._log.say, ahead=journal.send_new)
        uploader.start()
        self._uploader = uploader
        tracking = Tracking(spec, self._state, storage, spool, self._stop)
        self._tracking = tracking
        self._shipping.start(self._over)
        settle = None
        if (forwarder := self._forwarder) is not None:
            forwarder.start()
            files = Files(spool, storage)
            settle = lambda until: forwarder.settle(files, until)  # noqa: E731
        ending = self._state.memory.ending
        if ending is None:
            ending = self._training().run(tracking)
            self._state.reserve.release()
            self._state.memory.ending = ending
            with contextlib.suppress(OSError):  # the trainer's exit code is on the disk already
                self._state.save()
        self._enter("collecting")
        tracking.close()
        permission.join(0 if self._stop.reason == PREEMPTED else 60)
        results = Results(
            spec, self._state, spool, uploader, self._shipping.segments, tracking.last_seq
        )
        collector = Collector(storage, results, self._log, self._over, settle)
        until = self._stop.limit(max(spec.deadline, time.time() + COLLECT_AT_LEAST_S))
        status = collector.collect(ending, self._facts(), until)
        uploader.stop()
        return status

    def _training(self) -> Training:
        return Training(
            self._cloud,
            self._spec,
            self._state,
            self._log,
            self._stop,
            self._leaving,
            self._enter,
        )

    def _make_forwarder(self) -> Forwarder:
        phases = self._state.memory.phases
        return Forwarder(
            self._spec,
            self._shipping.segments["journal"],
            self._cloud.storage,
            self._cloud.metadata,
            is_running=lambda: any(entry["phase"] == "running" for entry in phases),
            say=self._log.say,
            note=self._note,
        )

    def _note(self, key: str, value: str | None) -> None:
        if self._tracking is not None and value is not None:
            self._tracking.set_tag(key, value)
        elif self._tracking is not None:
            self._tracking.delete_tag(key)

    def _watch(self) -> None:
        spec, cloud = self._spec, self._cloud
        stop_at = spec.deadline - spec.grace_seconds
        Watch(self._stop, self._over).start(
            cloud.metadata, cloud.storage, spec.bucket, spec.paths.cancel, stop_at
        )

    def _test_permission(self) -> None:
        memory = self._state.memory
        memory.may_delete = self._instance.may_delete_itself(patience=30.0)
        self._heartbeat.beat()
        if not memory.may_delete:
            self._log.say("this instance may not delete itself: it powers off at the end")

    def _earlier_status(self) -> dict[str, Any] | None:
        """``status.json`` of this attempt, when it was written before a restart.

        An agent that was killed in the middle of a training does not ask the bucket: the trainer
        waits for its relay.
        """
        if (kept := read_json(self._state.status)) is not None:
            return dict(kept)
        memory, spec = self._state.memory, self._spec
        if memory.phases and memory.ending is None:
            return None

        def once() -> dict[str, Any] | None:
            try:
                raw = json.loads(self._cloud.storage.get(spec.bucket, spec.paths.status))
            except CloudError as error:
                if error.status == 404:
                    return None
                raise
            return raw if raw.get("attempt") == spec.attempt else None

        try:
            return retrying(once, time.time() + 60)
        except CloudError:
            return None  # the bucket is away: work goes on, and ends in the same status

    # -- after --------------------------------------------------------------------------------

    def _leave(self, status: dict[str, Any]) -> None:
        """Delete the instance when its results are proven; keep it until its deadline else. What a
        preempted one has not brought to the bucket by now is lost with it. After ``status.json``
        the bucket's log is complete: what is still to be said goes to the console."""
        if not status["verified"] and status["end_reason"] != PREEMPTED:
            to_console("not everything is proven to be in the bucket: the instance stays")
            hold = threading.Event()
            while (remaining := self._spec.deadline - time.time()) > 0:
                hold.wait(min(30.0, remaining))
            return
        try:
            self._instance.delete_itself(time.time() + _DELETE_PATIENCE_S)
        except CloudError as error:
            to_console(f"this instance could not delete itself: {error}; powering off")
            power_off(to_console)
        else:
            self._instance.stay_until_gone(self._spec.deadline)

    # -- what is told of it -------------------------------------------------------------------

    def _enter(self, phase: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not keep anything from going on
            if not self._state.enter(phase):
                return
        self._heartbeat.beat()

    def _describe(self) -> dict[str, Any]:
        return {
            "attempt": self._spec.attempt,
            "instance": self._cloud.identity.name,
            "phases": list(self._state.memory.phases),
            "segments": self._shipping.counts(),
            "may_delete": self._state.memory.may_delete,
        }

    def _facts(self) -> dict[str, Any]:
        return {
            "instance": self._cloud.identity.name,
            "zone": self._cloud.identity.zone,
            "image": self._cloud.identity.image,
            "may_delete": bool(self._state.memory.may_delete),
        }
