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
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import bundle, environment
from .artifact_api import ArtifactApi
from .collecting import Collector, Results
from .compute import Instance, power_off
from .endpoint import retrying
from .errors import AgentError, CloudError, EnvironmentFailed, Stopped
from .heartbeat import Heartbeat
from .history import continue_journal, next_number
from .journal import Journal
from .locations import Locations
from .log import RunLog
from .metadata import Identity, MetadataServer
from .process import Launch, Trainer
from .relay import Relay
from .segments import Segments
from .spec import Spec
from .spool import Spool
from .state import Ending, State
from .stop import CANCELLED, DEADLINE, Stop, Watch
from .storage import Storage
from .tracking_api import TrackingApi
from .tracking_state import TrackingState
from .uploader import Uploader
from .users import Account, trainer_account

LOG_INTERVAL_S = 1.0
JOURNAL_INTERVAL_S = 2.0
# Collecting goes on so long after the trainer's end, even past the deadline: the instance's own
# limit (maxRunDuration) lies a rescue window behind the deadline.
COLLECT_AT_LEAST_S = 300.0
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
        self._may_delete = False
        self._over = threading.Event()
        self._stop = Stop()
        self._log = RunLog(state.log)
        self._heartbeat = Heartbeat(
            cloud.storage, spec.bucket, spec.paths.heartbeat, self._describe
        )
        self._segments: dict[str, Segments] = {}
        self._trouble: dict[str, str] = {}

    def run(self) -> None:
        """All of it. Returns when there is nothing left to do on this instance."""
        self._state.enter("fetching")
        self._heartbeat.start()
        self._may_delete = self._instance.may_delete_itself(patience=20.0)
        status = self._earlier_status()
        if status is None:
            status = self._make_and_collect()
        self._leave(bool(status["verified"]))
        self._heartbeat.stop()

    def _make_and_collect(self) -> dict[str, object]:
        spec, storage = self._spec, self._cloud.storage
        if not self._may_delete:
            self._log.say("this instance may not delete itself: it powers off at the end")
        Watch(self._stop, self._over).start(
            self._cloud.metadata,
            storage,
            spec.bucket,
            spec.paths.cancel,
            spec.deadline - spec.grace_seconds,
        )
        journal, tracking = self._open_journal()
        spool = Spool(self._state.root / "spool")
        uploader = Uploader(spool, storage, self._log.say)
        uploader.start()
        self._start_shipping()
        ending = self._state.memory.ending
        if ending is None:
            ending = self._train(tracking, spool)
            self._state.memory.ending = ending
            self._state.save()
        self._enter("collecting")
        journal.close()
        results = Results(spec, self._state, spool, uploader, self._segments, journal.last_seq)
        collector = Collector(storage, results, self._log, self._over)
        until = max(spec.deadline, time.time() + COLLECT_AT_LEAST_S)
        status = collector.collect(ending, self._facts(), until)
        uploader.stop()
        return status

    # -- before -------------------------------------------------------------------------------

    def _earlier_status(self) -> dict[str, object] | None:
        """``status.json`` of this attempt, when it was written before a restart."""
        spec, until = self._spec, time.time() + 60

        def once() -> dict[str, object] | None:
            try:
                raw = json.loads(self._cloud.storage.get(spec.bucket, spec.paths.status))
            except CloudError as error:
                if error.status == 404:
                    return None
                raise
            return raw if raw.get("attempt") == spec.attempt else None

        try:
            return retrying(once, until)
        except CloudError:
            return None  # the bucket is away: work goes on, and ends in the same status

    def _open_journal(self) -> tuple[Journal, TrackingApi]:
        spec = self._spec
        tracking = TrackingState(spec.experiment, spec.run)
        file = self._state.root / "journal.jsonl"
        last_seq = continue_journal(self._cloud.storage, spec, self._state.root, tracking)
        journal = Journal(file, last_seq)
        for record in journal.records():
            tracking.apply(record)
        return journal, TrackingApi(tracking, journal, Locations(spec.experiment_location))

    def _start_shipping(self) -> None:
        paths, journal = self._spec.paths, self._state.root / "journal.jsonl"
        self._ship("log", self._log.path, paths.log, paths.log_dir, LOG_INTERVAL_S)
        self._ship("journal", journal, paths.journal, paths.journal_dir, JOURNAL_INTERVAL_S)

    def _ship(
        self, kind: str, file: Path, name_of: Callable[[int], str], directory: str, interval: float
    ) -> None:
        segments = Segments(
            self._cloud.storage,
            self._spec.bucket,
            file,
            name_of,
            first=lambda: next_number(self._cloud.storage, self._spec, directory),
            whole_lines=kind == "journal",
        )
        self._segments[kind] = segments
        threading.Thread(
            target=segments.run,
            args=(self._over, interval, lambda trouble: self._note(kind, trouble)),
            daemon=True,
            name=f"ship-{kind}",
        ).start()

    # -- the trainer --------------------------------------------------------------------------

    def _train(self, tracking: TrackingApi, spool: Spool) -> Ending:
        """Fetch, prepare, run. Every way this can end is an Ending."""
        code: int | None = None
        try:
            code = self._run_trainer(tracking, spool)
            reason = self._stop.reason or ("succeeded" if code == 0 else "exited_nonzero")
            if code == 0:
                reason = "succeeded"  # the end came by itself, whatever was asked meanwhile
            message = _MESSAGES[reason].format(code=code)
        except Stopped:
            reason, message = self._stop.reason, f"{_MESSAGES[self._stop.reason]} before it began"
        except EnvironmentFailed as error:
            reason, message = "environment_failed", str(error)
        except (AgentError, OSError) as error:
            reason, message = "agent_failed", str(error)
        self._log.say(message.partition("\n")[0])
        return Ending(reason, code, message, time.time())

    def _run_trainer(self, tracking: TrackingApi, spool: Spool) -> int:
        spec, memory = self._spec, self._state.memory
        trainer = Trainer(self._state.trainer, self._log)
        found = trainer.find()
        if not found:
            self._prepare()
        relay = self._start_relay(tracking, spool)
        try:
            self._enter("running")
            if found:
                self._log.say("the agent was started again; the trainer went on meanwhile")
            else:
                account = trainer_account(self._log.say)
                account.own(self._state.work)
                trainer.start(
                    Launch(
                        spec.command,
                        bundle.workdir(spec, self._state.work),
                        trainer_variables(
                            spec, relay.url, memory.token, memory.bin_directory, account
                        ),
                        account,
                    )
                )
            return trainer.wait(self._stop, spec.grace_seconds)
        finally:
            relay.stop()

    def _prepare(self) -> None:
        spec, memory, storage = self._spec, self._state.memory, self._cloud.storage
        if not self._state.work.exists():
            archive = self._state.root / "bundle.tar.gz"
            retrying(
                lambda: bundle.fetch(storage, spec.bucket, spec.bundle, archive),
                spec.deadline,
                give_up=self._stop.is_set,
            )
            bundle.unpack(archive, self._state.work)
            archive.unlink()
        self._enter("environment")
        if not memory.environment_ready:
            memory.bin_directory = environment.prepare(
                spec.environment,
                self._state.root / "environment",
                storage=storage,
                bucket=spec.bucket,
                log=self._log,
                stop=self._stop,
                until=spec.deadline,
            )
            memory.environment_ready = True
            self._state.save()
        if self._stop.is_set():
            raise Stopped(self._stop.reason)

    def _start_relay(self, tracking: TrackingApi, spool: Spool) -> Relay:
        memory = self._state.memory
        locations = Locations(self._spec.experiment_location)
        memory.token = memory.token or secrets.token_urlsafe(32)
        artifacts = ArtifactApi(spool, self._cloud.storage, locations, tracking.lookup)
        relay = Relay(tracking, artifacts, locations, memory.token, memory.port)
        memory.port = relay.port
        self._state.save()
        relay.start()
        return relay

    # -- after --------------------------------------------------------------------------------

    def _leave(self, verified: bool) -> None:
        """Delete the instance when its results are proven; keep it until its deadline else."""
        if not verified:
            self._log_late("not everything is proven to be in the bucket: the instance stays")
            while time.time() < self._spec.deadline:
                self._over.wait(min(30.0, max(0.1, self._spec.deadline - time.time())))
            return
        try:
            self._instance.delete_itself(time.time() + 300)
        except CloudError as error:
            self._log_late(f"this instance could not delete itself: {error}; powering off")
            power_off(self._log_late)

    def _log_late(self, message: str) -> None:
        """After ``status.json`` the bucket's log is complete; this is for the serial console."""
        os.write(2, f"[mlflow-gce] {message}\n".encode())

    # -- what is told of it -------------------------------------------------------------------

    def _enter(self, phase: str) -> None:
        if self._state.enter(phase):
            self._heartbeat.beat()

    def _describe(self) -> dict[str, object]:
        return {
            "attempt": self._spec.attempt,
            "instance": self._cloud.identity.name,
            "phases": list(self._state.memory.phases),
            "segments": {
                kind: self._segments[kind].count if kind in self._segments else 0
                for kind in ("log", "journal")
            },
        }

    def _facts(self) -> dict[str, object]:
        return {
            "instance": self._cloud.identity.name,
            "zone": self._cloud.identity.zone,
            "may_delete": self._may_delete,
        }

    def _note(self, kind: str, trouble: str) -> None:
        """Say once that the bucket does not take log or journal, and once that it does again."""
        before, self._trouble[kind] = self._trouble.get(kind, ""), trouble
        if bool(before) != bool(trouble):
            self._log.say(f"{kind}: {trouble or 'the bucket takes it again'}")


def trainer_variables(
    spec: Spec, url: str, token: str, bin_directory: str, account: Account
) -> dict[str, str]:
    """The trainer's environment variables: the agent's own, MLflow's, the spec's."""
    variables = {**os.environ, "HOME": account.home, "USER": account.name, "LOGNAME": account.name}
    # A user name and a password would win over the token.
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        variables.pop(name, None)
    variables.update(
        MLFLOW_RUN_ID=spec.run_id,
        MLFLOW_TRACKING_URI=url,
        MLFLOW_TRACKING_TOKEN=token,
        MLFLOW_EXPERIMENT_ID=str(spec.experiment["experiment_id"]),
        MLFLOW_DISABLE_TELEMETRY="true",
        PYTHONUNBUFFERED="1",
        GIT_PYTHON_REFRESH="quiet",
    )
    variables.update(spec.env)
    if bin_directory:
        path = variables.get("PATH") or os.defpath
        variables.update(PATH=f"{bin_directory}:{path}", VIRTUAL_ENV=os.path.dirname(bin_directory))
    return variables
