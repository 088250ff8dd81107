"""The training itself: prepared, started, watched, ended. Every way this can go is an Ending."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from . import bundle, environment
from .cloud import Cloud
from .companions import accompany
from .endpoint import retrying
from .errors import AgentError, EnvironmentFailed, Stopped
from .log import RunLog
from .placement import placed
from .process import Launch, Trainer, trainer_variables
from .restore import restore
from .spec import Spec
from .state import Ending, State
from .stop import CANCELLED, DEADLINE, NOTICE_GRACE_S, PREEMPTED, STALLED, Stop
from .tracking import Tracking
from .users import trainer_account

# A machine that shuts down ends trainer and agent in any order; so long the agent waits to see
# whether it is next before it believes that the trainer was ended by somebody else.
_SHUTDOWN_S = 3.0
_FOREVER_S = 60.0  # longer than a shutdown takes
_MESSAGES = {
    "succeeded": "the trainer ended with exit code 0",
    "exited_nonzero": "the trainer ended with exit code {code}",
    CANCELLED: "the run was cancelled",
    DEADLINE: "the run's time was up",
    PREEMPTED: "Compute Engine takes this spot instance back",
    STALLED: "the trainer showed no sign of life for {minutes:g} minutes",
}


class Training:
    """Args:
    leaving: set when the machine goes down, or the agent is to be replaced.
    enter: called with the name of each phase that begins.
    """

    def __init__(
        self,
        cloud: Cloud,
        spec: Spec,
        state: State,
        log: RunLog,
        stop: Stop,
        leaving: threading.Event,
        enter: Callable[[str], None],
    ) -> None:
        self._cloud, self._spec, self._state, self._log = cloud, spec, state, log
        self._stop, self._leaving, self._enter = stop, leaving, enter

    def run(self, tracking: Tracking) -> Ending:
        """Fetch, prepare, run, whatever of it a restarted agent finds undone."""
        code: int | None = None
        try:
            code, told = self._run_trainer(tracking)
            reason = told or ("succeeded" if code == 0 else "exited_nonzero")
            message = self._message(reason, code)
        except EnvironmentFailed as error:
            reason, message = "environment_failed", str(error)
        except Stopped:
            reason = self._stop.reason
            message = f"{self._message(reason)} before training"
        except (AgentError, OSError) as error:
            reason, message = "agent_failed", str(error)
            if self._stop.is_set():  # a wait that was given up
                reason = self._stop.reason
        except Exception as error:  # a bug of ours must not keep the instance
            reason, message = "agent_failed", f"{type(error).__name__}: {error}"
        self._log.say(message)
        return Ending(reason, code, message, time.time())

    def _message(self, reason: str, code: int | None = None) -> str:
        return _MESSAGES[reason].format(code=code, minutes=self._spec.stall_minutes)

    def _run_trainer(self, tracking: Tracking) -> tuple[int, str]:
        """Exit code, and why the trainer was told to end ("" when it ended by itself)."""
        trainer = Trainer(self._state.trainer, self._log)
        found = trainer.find()
        if not found:
            self._prepare()
            tracking.new_trainer()
        with self._served(tracking, trainer) as url:
            self._enter("running")
            if found:
                self._state.end_preparing()  # whoever began it may not have come so far
                self._log.say("the agent was started again; the trainer went on meanwhile")
            else:
                self._start(trainer, url)
            code = trainer.wait(self._stop, self._grace)
            return code, trainer.told or self._taken_along(trainer)

    @contextlib.contextmanager
    def _served(self, tracking: Tracking, trainer: Trainer) -> Iterator[str]:
        """The relay's URL, while the relay and what goes along with a trainer are there."""
        relay = tracking.serve()
        try:
            with accompany(self._spec, self._state, self._log, tracking, trainer, self._stop):
                yield relay.url
        finally:
            relay.stop()

    def _grace(self) -> float:
        """Seconds from SIGTERM to SIGKILL."""
        grace = self._spec.grace_seconds
        return min(grace, NOTICE_GRACE_S) if self._stop.reason == PREEMPTED else grace

    def _taken_along(self, trainer: Trainer) -> str:
        """Why a trainer ended that the agent did not tell to: the machine's own shutdown may have
        told it first, and then the end is none of the run."""
        if trainer.may_be_taken_along:
            time.sleep(_SHUTDOWN_S)
        if self._stop.reason != PREEMPTED and self._cloud.metadata.preempted():
            self._stop.set(PREEMPTED)
        if self._stop.reason == PREEMPTED:
            return PREEMPTED
        if self._leaving.is_set():
            time.sleep(_FOREVER_S)
        return ""

    def _start(self, trainer: Trainer, url: str) -> None:
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
        state.begin_preparing()
        if not state.work.exists():
            archive = state.root / "bundle.tar.gz"
            retrying(
                lambda: bundle.fetch(storage, spec.bucket, spec.bundle, archive),
                spec.deadline,
                give_up=self._stop.is_set,
            )
            bundle.unpack(archive, state.work)
            archive.unlink()
        if spec.attempt > 1 and not state.memory.restored:
            restore(storage, spec, state.work, self._log.say)
            state.memory.restored = True
            state.save()
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
                state.environment,
                storage=storage,
                bucket=spec.bucket,
                log=self._log,
                stop=self._stop,
                until=spec.deadline,
            )
            state.memory.environment_ready = True
            state.save()
        state.end_preparing()
        if self._stop.is_set():
            raise Stopped(self._stop.reason)
