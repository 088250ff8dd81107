"""The order of things on the instance, from the spec to the instance's own deletion.

::

    fetching ──▶ environment ──▶ running ──▶ collecting ──▶ status.json ──▶ delete myself
        └───────────────┴─────────────┴─── cancelled, deadline, errors ──▶ collecting

Two rules: whatever happens, what there is gets collected; and ``status.json`` is written last,
once, after everything else is in the bucket. Each step looks first whether it was done before a
restart.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from . import bundle, environment
from .collecting import Collector, Results
from .compute import Instance, power_off
from .endpoint import retrying
from .errors import AgentError, CloudError, EnvironmentFailed, Stopped
from .files import read_json, write_json
from .forward import Forwarder
from .forward_files import Files
from .heartbeat import Heartbeat
from .log import RunLog
from .metadata import Identity, MetadataServer
from .placement import placed
from .process import Launch, Trainer, trainer_variables
from .shipping import Shipping
from .spec import Spec
from .spool import Spool
from .state import Ending, State
from .stop import CANCELLED, DEADLINE, Stop, Watch
from .storage import Storage
from .tracking import Tracking
from .uploader import Uploader
from .users import trainer_account

# Collecting goes on so long after the trainer's end, even past the deadline: the instance's own
# limit (maxRunDuration) lies a rescue window behind the deadline.
COLLECT_AT_LEAST_S = 300.0
_DELETE_PATIENCE_S = 300.0
# A machine that shuts down ends trainer and agent in any order; so long the agent waits to see
# whether it is next before it believes that the trainer was ended by somebody else.
_SHUTDOWN_S = 3.0
# From the notice of a preemption to the end are 30 seconds.
_LEAVE_S = 20.0
_MESSAGES = {
    "succeeded": "the trainer ended with exit code 0",
    "exited_nonzero": "the trainer ended with exit code {code}",
    CANCELLED: "the run was cancelled",
    DEADLINE: "the run's time was up",
}


@dataclass
class Cloud:
    """The endpoints, and who we are."""

    metadata: MetadataServer
    storage: Storage
    identity: Identity


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
            write_json(self._state.status, status)
        if self._forwarder is not None and status.get("forwarded"):
            self._forwarder.tell(status)
        self._leave(bool(status["verified"]))
        self._heartbeat.stop()

    def leave(self, exit_code: int) -> None:
        """The machine goes down, or the agent is replaced: bring to the bucket what can be brought
        in the time there is, and end the process. The disk has all of it anyway."""
        if not self._leaving.is_set():
            self._leaving.set()
            threading.Thread(target=self._flush_and_exit, args=(exit_code,), daemon=True).start()

    def _flush_and_exit(self, exit_code: int) -> None:
        until = time.time() + _LEAVE_S
        try:
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
        uploader = Uploader(spool, storage, self._log.say)
        uploader.start()
        self._uploader = uploader
        tracking = Tracking(spec, self._state, storage, spool)
        self._tracking = tracking
        self._shipping.start(self._over)
        settle = None
        if (forwarder := self._forwarder) is not None:
            forwarder.start()
            files = Files(spool, storage)
            settle = lambda until: forwarder.settle(files, until)  # noqa: E731
        ending = self._state.memory.ending
        if ending is None:
            ending = self._train(tracking)
            self._state.memory.ending = ending
            self._state.save()
        self._enter("collecting")
        tracking.close()
        permission.join(60)
        results = Results(
            spec, self._state, spool, uploader, self._shipping.segments, tracking.last_seq
        )
        collector = Collector(storage, results, self._log, self._over, settle)
        until = max(spec.deadline, time.time() + COLLECT_AT_LEAST_S)
        status = collector.collect(ending, self._facts(), until)
        uploader.stop()
        return status

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

    # -- the trainer --------------------------------------------------------------------------

    def _train(self, tracking: Tracking) -> Ending:
        """Fetch, prepare, run. Every way this can end is an Ending."""
        code: int | None = None
        try:
            code, told = self._run_trainer(tracking)
            reason = told or ("succeeded" if code == 0 else "exited_nonzero")
            message = _MESSAGES[reason].format(code=code)
        except EnvironmentFailed as error:
            reason, message = "environment_failed", str(error)
        except Stopped:
            reason, message = self._stop.reason, f"{_MESSAGES[self._stop.reason]} before training"
        except (AgentError, OSError) as error:
            reason, message = "agent_failed", str(error)
            if self._stop.is_set():  # a wait that was given up
                reason = self._stop.reason
        except Exception as error:  # a bug of ours must not keep the instance
            reason, message = "agent_failed", f"{type(error).__name__}: {error}"
        self._log.say(message)
        return Ending(reason, code, message, time.time())

    def _run_trainer(self, tracking: Tracking) -> tuple[int, str]:
        """Exit code, and why the trainer was told to end ("" when it ended by itself)."""
        trainer = Trainer(self._state.trainer, self._log)
        found = trainer.find()
        if not found:
            self._prepare()
        relay = tracking.serve()
        try:
            self._enter("running")
            if found:
                self._log.say("the agent was started again; the trainer went on meanwhile")
            else:
                self._start_trainer(trainer, relay.url)
            code = trainer.wait(self._stop, self._spec.grace_seconds)
            if code > 128 and not trainer.told:
                time.sleep(_SHUTDOWN_S)
            if self._leaving.is_set():  # its end is the shutdown's work: no ending of the run
                time.sleep(2 * _LEAVE_S)
            return code, trainer.told
        finally:
            relay.stop()

    def _start_trainer(self, trainer: Trainer, url: str) -> None:
        spec, state = self._spec, self._state
        account = trainer_account(self._log.say)
        account.own(state.work)
        variables = trainer_variables(
            spec, url, state.memory.token, state.memory.bin_directory, account
        )
        variables["MLFLOW_GCE_JOB"] = str(state.job)
        workdir = bundle.workdir(spec, placed(state.work, spec.place, account, self._log.say))
        trainer.start(Launch(spec.command, workdir, variables, account))

    def _prepare(self) -> None:
        spec, state, storage = self._spec, self._state, self._cloud.storage
        if not state.work.exists():
            archive = state.root / "bundle.tar.gz"
            retrying(
                lambda: bundle.fetch(storage, spec.bucket, spec.bundle, archive),
                spec.deadline,
                give_up=self._stop.is_set,
            )
            bundle.unpack(archive, state.work)
            archive.unlink()
        if (job := spec.job) is not None and not state.job.exists():
            retrying(
                lambda: bundle.fetch(storage, spec.bucket, job, state.job),
                spec.deadline,
                give_up=self._stop.is_set,
            )
        self._enter("environment")
        if not state.memory.environment_ready:
            state.memory.bin_directory = environment.prepare(
                spec.environment,
                state.root / "environment",
                storage=storage,
                bucket=spec.bucket,
                log=self._log,
                stop=self._stop,
                until=spec.deadline,
            )
            state.memory.environment_ready = True
            state.save()
        if self._stop.is_set():
            raise Stopped(self._stop.reason)

    # -- after --------------------------------------------------------------------------------

    def _leave(self, verified: bool) -> None:
        """Delete the instance when its results are proven; keep it until its deadline else."""
        if not verified:
            self._say_late("not everything is proven to be in the bucket: the instance stays")
            hold = threading.Event()
            while (remaining := self._spec.deadline - time.time()) > 0:
                hold.wait(min(30.0, remaining))
            return
        try:
            self._instance.delete_itself(time.time() + _DELETE_PATIENCE_S)
        except CloudError as error:
            self._say_late(f"this instance could not delete itself: {error}; powering off")
            power_off(self._say_late)

    def _say_late(self, message: str) -> None:
        """After ``status.json`` the bucket's log is complete; this is for the serial console."""
        os.write(2, f"[mlflow-gce] {message}\n".encode())

    # -- what is told of it -------------------------------------------------------------------

    def _enter(self, phase: str) -> None:
        if self._state.enter(phase):
            self._heartbeat.beat()

    def _describe(self) -> dict[str, Any]:
        return {
            "attempt": self._spec.attempt,
            "instance": self._cloud.identity.name,
            "phases": list(self._state.memory.phases),
            "segments": self._shipping.counts(),
        }

    def _facts(self) -> dict[str, Any]:
        return {
            "instance": self._cloud.identity.name,
            "zone": self._cloud.identity.zone,
            "may_delete": self._state.memory.may_delete,
        }
