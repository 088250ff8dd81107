"""The fault matrix: every event at every moment of a run, generated from the two lists.

Each cell says what may come of it: how the run ends, who deletes the instance, how long it may
bill after the event (emulator's clock; generous, since machines that test are busy). In every cell:
nothing is left, one instance at a time, and what the run acknowledged is there, once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from conftest import wait_until
from stage import MOMENTS, Stage

from gce_backend.emulator import Fault

BEFORE = MOMENTS[:2]  # no instance exists
TRAINING = ["epoch 1", "epoch 2"]
ENDED = ["after status.json", "deleting"]
_CUT_SECONDS = 3.0


@dataclass(frozen=True)
class Expected:
    """What may come of a cell.

    Args:
        reasons: of the run's end.
        deletes: who may have asked for the last deletion: agent, client; empty: nobody had to.
        minutes: how long an instance may bill after the event, at most.
        inserts: how many attempts there may be.
    """

    reasons: tuple[str, ...] = ("succeeded",)
    deletes: tuple[str, ...] = ("agent", "client")
    minutes: float = 2.0
    inserts: int = 1


@dataclass(frozen=True)
class Event:
    """Something that goes wrong.

    Args:
        happens: does it, to a stage that is stopped at a moment.
        to_client: the client dies of it, or leaves: the instance has to end by itself.
        needs: what must be there for it to happen to.
    """

    happens: Callable[[Stage], None]
    to_client: bool = False
    needs: str = ""


def _signal(number: int) -> Callable[[Stage], None]:
    def happens(stage: Stage) -> None:
        assert stage.client is not None
        stage.client.send(number)

    return happens


def _cut_network(stage: Stage) -> None:
    """The instance's; it comes back."""
    emulator, name = stage.cloud.emulator, stage.instance
    emulator.inject(Fault("network_cut", resource=name, times=None))
    _later(_CUT_SECONDS, emulator.clear_faults)


def _refuse_bucket(stage: Stage) -> None:
    """To everybody; ten minutes, scaled."""
    emulator = stage.cloud.emulator
    emulator.inject(Fault("unavailable", "storage.*", f"{stage.cloud.bucket}*", times=None))
    _later(_CUT_SECONDS, emulator.clear_faults)


def _later(seconds: float, act: Callable[[], None]) -> None:
    threading.Timer(seconds, act).start()


EVENTS: dict[str, Event] = {
    "client SIGKILL": Event(_signal(signal.SIGKILL), to_client=True),
    "client SIGTERM": Event(_signal(signal.SIGTERM), to_client=True),
    "client SIGHUP": Event(_signal(signal.SIGHUP), to_client=True),
    "network cut": Event(_cut_network, needs="instance"),
    "agent SIGKILL": Event(lambda stage: stage.kill("agent.pyz"), needs="agent"),
    "trainer SIGKILL": Event(lambda stage: stage.kill("main.py"), needs="trainer"),
    "host error": Event(
        lambda stage: stage.cloud.emulator.power_off(stage.instance), needs="instance"
    ),
    "preemption with notice": Event(
        lambda stage: stage.cloud.emulator.preempt(stage.instance), needs="instance"
    ),
    "preemption without notice": Event(
        lambda stage: stage.cloud.emulator.erase(stage.instance), needs="instance"
    ),
    "reboot": Event(Stage.reset, needs="instance"),
    "bucket refuses": Event(_refuse_bucket),
}


def expected(event: str, moment: str) -> Expected | None:
    """The cell's bound; None where the event finds nothing to happen to."""
    needs = EVENTS[event].needs
    # At "creating" the operation still runs, and the emulator shows no instance that works.
    has_instance = moment not in (*BEFORE, "creating", "deleting")
    has_agent = has_instance and moment != "booting"
    if needs == "instance" and not has_instance:
        return None
    if needs == "agent" and (not has_agent or moment in ENDED):
        return None
    if needs == "trainer" and moment not in TRAINING:
        return None
    if EVENTS[event].to_client:
        if moment == "before insert":
            reason = "submit_failed" if event == "client SIGKILL" else "cancelled"
            return Expected((reason,), deletes=(), inserts=0)
        return Expected(deletes=("agent",) if moment not in ENDED else ("agent", "client"))
    if event == "trainer SIGKILL":
        return Expected(("exited_nonzero",))
    if event in ("preemption with notice", "preemption without notice"):
        return Expected(inserts=1 if moment in ENDED else 2)
    return Expected()


CELLS = [
    pytest.param(event, moment, id=f"{event}, {moment}")
    for moment in MOMENTS
    for event in EVENTS
    if expected(event, moment) is not None
]


@pytest.mark.matrix(cells=3)
@pytest.mark.parametrize(("event", "moment"), CELLS)
def test_nothing_leaks_and_nothing_is_lost(cloud, event, moment):
    bound = expected(event, moment)
    assert bound is not None
    stage = Stage(cloud)

    with stage.stopped_at(moment):
        EVENTS[event].happens(stage)
        if EVENTS[event].to_client:
            _client_is_gone(stage)
    _until_quiet(stage, moment, alone=EVENTS[event].to_client)

    billed = cloud.emulator.now() - stage.at
    code, output = stage.mlflow_gce("attach", stage.run_id)
    run = cloud.only_run()
    told = f"\n{output}\n--- the first client:\n{stage.client.text}"
    assert cloud.emulator.instances() == [], told
    assert run.data.tags["gce.end_reason"] in bound.reasons, told
    assert (run.info.status == "FINISHED") is (bound.reasons == ("succeeded",)), told
    assert (code == 0) is (run.info.status == "FINISHED"), told
    assert billed <= bound.minutes * 60, told
    assert len(cloud.inserted()) <= max(1, bound.inserts), told
    assert len(set(cloud.inserted())) == len(cloud.inserted()), f"twice the same name{told}"
    _check_who_deleted(stage, bound)
    if run.info.status == "FINISHED":
        _check_results(cloud, run)


def _client_is_gone(stage: Stage) -> None:
    assert stage.client is not None
    stage.client.end(60)


def _until_quiet(stage: Stage, moment: str, *, alone: bool) -> None:
    """Until the client has ended and no instance is left by itself.

    Where it cannot be quiet by itself (a run that waits for a client), the next command makes it.
    """
    assert stage.client is not None
    if not alone:
        stage.client.end(120)
    if moment != "before insert":
        wait_until(stage.cloud.inserted, 60, "the insert")
    wait_until(lambda: stage.names == [], 120, "the end of the instance")


def _check_who_deleted(stage: Stage, bound: Expected) -> None:
    callers = {"agent" if call.caller else "client" for call in stage.deletes()}
    assert not bound.deletes or not callers or callers & set(bound.deletes), callers


def _check_results(cloud, run) -> None:
    history = cloud.client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == [1, 2], "one history, each point once"
    folder = run.info.artifact_uri.split("/", 3)[3]
    assert cloud.read(f"{folder}/result.txt") == b"done\n"
    assert cloud.read(f"{folder}/checkpoints/epoch") == b"2"
