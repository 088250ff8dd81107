"""Random faults and time, driven through the lifecycle: no leak, no orphan, nothing lost.

Each history is one run. Clients submit it, watch it, are killed and come back; meanwhile machines
are taken, fail and hang, and calls are refused, half done or late. Whatever has happened: once a
client has come back and the deadline has passed, all is as promised.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

import gce_backend.config
import gce_backend.reaper
import gce_backend.runner
import gce_backend.submit
from gce_backend.console import Console
from gce_backend.emulator import Fault
from gce_backend.errors import GceBackendError
from gce_backend.interrupts import Detached, Interrupts
from gce_backend.lifecycle import OUTCOME, EndReason
from gce_backend.run_finder import find_submission
from gce_backend.runner import Runner
from gce_backend.tracking import END_REASON_TAG

from .events import SCRIPTS
from .machine import STEPS
from .world import Event, Killed, Process, World

pytestmark = pytest.mark.flow  # a real emulator

PROJECT = Path(__file__).parent.parent / "projects" / "plain"
SEED = int(os.environ.get("MATRIX_SEED", "0"))
PARAMETERS = {
    "machine.spot": "true",
    "gce.zones": "[europe-west1-b,europe-west4-a]",
    "gce.max_hours": "0.5",
    "gce.rescue_minutes": "10",
    "gce.boot_minutes": "2",
    "gce.grace_seconds": "2",
    "gce.max_attempts": "3",
    "gce.ssh.via": "none",
}
_AFTER_ALL = 7200.0  # seconds: past every deadline
_NO_SCRIPT = Fault("no_startup_script", times=None)
#: What is said only where no instance of the run exists, and so nothing bills.
_CLAIMS = ("GET says 404", "No instance exists", "nothing bills", "No instance of it exists")


class Witness(Console):
    """A console that looks, at the moment of a claim, whether it is true."""

    def __init__(self, world: World) -> None:
        super().__init__(out=io.StringIO(), err=io.StringIO())
        self._world = world

    def say(self, text: str) -> None:
        self.check(text)

    def warn(self, text: str) -> None:
        self.check(text)

    def check(self, text: str) -> None:
        if any(claim in text for claim in _CLAIMS):
            for each in self._world.emulator.instances():
                if "GET says 404" not in text or each["name"] in text:
                    self._world.violations.append(f"{each['name']} exists, though: {text}")


class History(RuleBasedStateMachine):
    """One run, from its submission to its end."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.begin()
        self._calm()
        self._forget_others()
        self.name = f"history-{uuid.uuid4().hex[:8]}"
        self.said: list[str] = []

    # ------------------------------------------------------------------ what people do

    @property
    def goes_on(self) -> bool:
        """Whether there is something left to happen to.

        Asked inside the rules and no precondition of theirs: it hangs on threads and real time,
        and hypothesis must draw the same for the same beginning.
        """
        return bool(self.world.emulator.instances()) or not self._is_over()

    @initialize(script=SCRIPTS, follow=st.booleans())
    def submit(self, script: list[Event], follow: bool) -> None:
        def work(console: Console) -> None:
            interrupts = Interrupts(active=False)
            order = gce_backend.submit.Order(
                uri=str(PROJECT),
                entry_point="main",
                tracking_uri=os.environ["MLFLOW_TRACKING_URI"],
                experiment_id="0",
                parameters=PARAMETERS,
                run_name=self.name,
                env_manager="local",
            )
            submission, found = gce_backend.submit.submit(order, console, interrupts)
            if not follow:
                return
            limits = gce_backend.runner.Limits(found.gce.boot_minutes * 60, found.gce.grace_seconds)
            Runner(submission, endpoints=found.endpoints, console=console, limits=limits).follow(
                interrupts
            )

        self._command("submit", script, work)

    @rule(script=SCRIPTS)
    def attach(self, script: list[Event]) -> None:
        if self.goes_on:
            self._command("attach", script, lambda c: self._runner(c).follow(_nobody()))

    @rule(script=SCRIPTS)
    def stop(self, script: list[Event]) -> None:
        if self.goes_on:
            self.world.causes.add("cancel")
            self._command("stop", script, lambda c: self._runner(c).cancel(_nobody()))

    @rule(script=SCRIPTS)
    def stop_now(self, script: list[Event]) -> None:
        if self.goes_on:
            self.world.causes.add("stop now")
            self._command("stop --now", script, lambda c: self._runner(c).delete_now())

    @rule(script=SCRIPTS)
    def sync(self, script: list[Event]) -> None:
        self._command("sync", script, lambda c: self._runner(c).sync())

    @rule(script=SCRIPTS, proven_only=st.booleans())
    def reap(self, script: list[Event], proven_only: bool) -> None:
        if self.goes_on:
            self._command("reap", script, lambda c: self._reap(c, proven_only))

    @rule(script=SCRIPTS, seconds=st.sampled_from([5, 60, 900]), times=st.integers(1, 5))
    def nobody_watches(self, script: list[Event], seconds: int, times: int) -> None:
        if not self.goes_on:
            return
        self.world.script.extend(script)
        for _ in range(times):
            self.world.pass_(seconds)
        self.world.script.clear()
        self.world.process = Process()  # a kill met nobody

    def _reap(self, console: Console, proven_only: bool) -> None:
        project = self.world.emulator.project
        reaper = gce_backend.reaper.Reaper(
            project, endpoint=gce_backend.config.read_endpoints().compute
        )
        for outcome in reaper.run(proven_only=proven_only):
            if outcome.deed == "deleted":
                console.say(f"{outcome.instance.name}: GET says 404")

    def _runner(self, console: Console) -> Runner:
        submission = find_submission(self.name, None)
        endpoints = gce_backend.config.read_endpoints()
        return Runner(submission, endpoints=endpoints, console=console)

    def _command(self, name: str, script: list[Event], work: Callable[[Console], object]) -> None:
        """One process of a client, which may end by an error or be killed."""
        world = self.world
        world.process = Process()
        world.script.extend(script)
        console = Witness(world)
        try:
            work(console)
            self.said.append(f"{name}: done")
        except (GceBackendError, Detached) as error:
            console.check(str(error))
            self.said.append(f"{name}: {type(error).__name__}: {error}")
        except Killed:
            self.said.append(f"{name}: killed")
            world.process.is_dead = True
        finally:
            _join_threads()
            world.process = Process()  # who looks at it all from here on lives
        assert not world.violations, "\n".join([*world.violations, *self.said])

    # ------------------------------------------------------------------ what must be true

    def teardown(self) -> None:
        self._calm()
        if len(self.said) % 3:  # a person comes back in time; otherwise nobody does
            self._command("attach", [], lambda c: self._runner(c).follow(_nobody()))
        for _ in range(8):
            self.world.pass_(_AFTER_ALL / 8)
        self._command("reap", [], lambda c: self._reap(c, proven_only=False))
        left = [each["name"] for each in self.world.look()]
        told = "\n".join(self.said)
        assert left == [], f"left: {left}\n{told}"
        for number in range(4):  # each attempt that a run still has ends in it
            if self._is_over():
                break
            self._command(f"attach {number}", [], lambda c: self._runner(c).follow(_nobody()))
        with contextlib.suppress(GceBackendError):
            self._runner(Witness(self.world)).sync()
        self._check_run(told)
        assert not self.world.violations, "\n".join(self.world.violations)

    def _calm(self) -> None:
        self.world.script.clear()
        self.world.emulator.clear_faults()
        self.world.emulator.inject(_NO_SCRIPT)
        self.world.haste = 10.0
        self.world.process = Process()

    def _forget_others(self) -> None:
        """Every command looks after runs that ended without a client: soon it were hundreds."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        for run in client.search_runs([each.experiment_id for each in client.search_experiments()]):
            client.delete_run(run.info.run_id)

    def _run(self) -> Any:
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        everywhere = [each.experiment_id for each in client.search_experiments()]
        found = client.search_runs(everywhere, f"attributes.run_name = '{self.name}'")
        return found[0] if found else None

    def _is_over(self) -> bool:
        run = self._run()
        return run is None or run.info.status in ("FINISHED", "FAILED", "KILLED")

    def _check_run(self, told: str) -> None:
        run = self._run()
        if run is None:
            return  # killed before there was one
        tags = run.data.tags
        told = f"{run.info.status} {tags.get(END_REASON_TAG)} {self.world.causes}\n{told}"
        assert self._is_over(), told
        if "kill" in self.world.causes and END_REASON_TAG not in tags:
            assert "gce.instance" not in tags, told
            return
        reason = EndReason(tags[END_REASON_TAG])
        assert run.info.status == OUTCOME[reason].mlflow_status, told
        self._check_reason(reason, told)
        self._check_artifacts(run, reason, told)

    def _check_reason(self, reason: EndReason, told: str) -> None:
        """Nothing ends for a reason that did not occur; and what the last agent said counts."""
        occurred = {
            EndReason.CANCELLED: {"cancel", "stop now", "kill"},
            EndReason.PREEMPTED: {"preempt", "preempt with notice"},
            EndReason.EXITED_NONZERO: {"fail"},
            EndReason.RESULTS_UNVERIFIED: {"lose", "user stop", "host error"},
        }
        assert reason not in occurred or occurred[reason] & self.world.causes, told
        ended = [m for m in self.world.machines.values() if m.status is not None]
        succeeded = [m for m in ended if m.status and m.status["end_reason"] == "succeeded"]
        if any(m.status and m.status["verified"] for m in succeeded):
            assert reason is EndReason.SUCCEEDED, told
        if reason is EndReason.SUCCEEDED:
            assert succeeded, told

    def _check_artifacts(self, run: Any, reason: EndReason, told: str) -> None:
        """Whatever was acknowledged is there, byte for byte; a success has all of it."""
        from mlflow.tracking import MlflowClient

        for machine in self.world.machines.values():
            for name, data in machine.acknowledged.items():
                assert self.world.storage.read(name) == data, f"{name}\n{told}"
        if reason is EndReason.SUCCEEDED:
            history = MlflowClient().get_metric_history(run.info.run_id, "loss")
            assert [point.step for point in history] == list(range(1, STEPS + 1)), told


def _nobody() -> Interrupts:
    """At the keyboard."""
    return Interrupts(active=False)


def _join_threads() -> None:
    """Those of the command that has ended: the next one must not meet them."""
    for thread in threading.enumerate():
        if thread.name.startswith(("mlflow-gce-", "cancel-")):
            thread.join(5)


def _tell(world: World, number: int, examples: int) -> None:
    History.world = world
    run_state_machine_as_test(
        seed(number)(History),
        settings=settings(
            max_examples=examples,
            stateful_step_count=4,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # seconds each: shrinking would take hours
        ),
    )


def test_a_few_histories_without_a_leak_an_orphan_or_a_loss(world: World) -> None:
    _tell(world, SEED, 2)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(10))
def test_a_thousand_histories_without_a_leak_an_orphan_or_a_loss(world: World, part: int) -> None:
    _tell(world, SEED + part, 100)
