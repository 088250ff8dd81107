"""The fault matrix: every event at every moment of a run, generated from the two lists.

Each cell says what may come of it: how the run ends, which layer deletes the instance, how long it
may bill after the event. In every cell nothing is left, there is one instance at a time, and what
the run had acknowledged is there, once. A cell that cannot be has a rule that says why.

Bounds are in minutes of the emulator's clock, generous because machines that test are busy. A
bucket's ten minutes are shortened to seconds; the real ten are in ``test_faults_runs.py``.
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

BEFORE = ("before insert", "insert sent but no reply", "creating")
TRAINING = ("epoch 1", "epoch 2")
ENDED = ("after status.json", "deleting")
_CUT_SECONDS = 3.0


@dataclass(frozen=True)
class Event:
    """Something that goes wrong.

    Args:
        happens: does it, to a stage that is stopped at a moment.
        needs: what must be there for it to happen to.
        to_client: the client dies of it, or leaves: the instance has to end by itself.
        minutes: how long an instance may bill afterwards, at most.
        attempts: how many instances the run may come to have.
        disk_only: nothing works any more, and only the disk bills until the next command.
        reason: how the run ends.
    """

    happens: Callable[[Stage], None]
    needs: str = ""
    to_client: bool = False
    minutes: float = 1.5
    attempts: int = 1
    disk_only: bool = False
    reason: str = "succeeded"


def _signal(number: int) -> Callable[[Stage], None]:
    def happens(stage: Stage) -> None:
        assert stage.client is not None
        stage.client.send(number)
        if number == signal.SIGKILL:
            stage.client.end(60)

    return happens


def _cut_network(stage: Stage) -> None:
    """The instance's; it comes back."""
    _away(stage, Fault("network_cut", resource=stage.instance, times=None))


def _refuse_bucket(stage: Stage) -> None:
    """To everybody."""
    _away(stage, Fault("unavailable", "storage.*", f"{stage.cloud.bucket}*", times=None))


def _away(stage: Stage, fault: Fault) -> None:
    stage.cut_off = True
    stage.cloud.emulator.inject(fault)
    threading.Timer(_CUT_SECONDS, stage.cloud.emulator.clear_faults).start()


def _host_error(stage: Stage) -> None:
    stage.cloud.emulator.power_off(stage.instance)


def _host_error_alone(stage: Stage) -> None:
    _signal(signal.SIGKILL)(stage)
    _host_error(stage)


def _preempt(stage: Stage) -> None:
    stage.cloud.emulator.preempt(stage.instance)


def _erase(stage: Stage) -> None:
    stage.cloud.emulator.erase(stage.instance)


EVENTS: dict[str, Event] = {
    "client SIGKILL": Event(_signal(signal.SIGKILL), to_client=True),
    "client SIGTERM": Event(_signal(signal.SIGTERM), to_client=True),
    "client SIGHUP": Event(_signal(signal.SIGHUP), to_client=True),
    "network cut": Event(_cut_network, "instance"),
    "agent SIGKILL": Event(lambda stage: stage.kill("agent.pyz"), "agent"),
    "trainer SIGKILL": Event(
        lambda stage: stage.kill("main.py"), "trainer", reason="exited_nonzero"
    ),
    "host error": Event(_host_error, "instance"),
    "host error, no client": Event(_host_error_alone, "instance", disk_only=True),
    "preemption with notice": Event(_preempt, "instance", minutes=2.0, attempts=2),
    "preemption without notice": Event(_erase, "instance", minutes=2.0, attempts=2),
    "reboot": Event(Stage.reset, "instance"),
    "bucket refuses": Event(_refuse_bucket),
}


def impossible(event: str, moment: str) -> str:
    """Why a cell cannot be; "" for one that can."""
    needs = EVENTS[event].needs
    if needs and moment in BEFORE:
        return "nothing runs yet that it could happen to"
    if needs and moment == "deleting":
        return "the deletion is under way, and nothing on the instance is asked any more"
    if needs == "agent" and moment == "booting":
        return "there is no agent yet: the startup script fetches it"
    if needs == "agent" and moment == "after status.json":
        return "the client deletes the instance at the same time: it may be gone already"
    if needs == "trainer" and moment not in TRAINING:
        return "there is no trainer yet, or no more"
    if event == "host error, no client" and moment == "after status.json":
        return "the agent's delete has been sent: no disk is left"
    return ""


def end_reason(event: str, moment: str) -> str:
    """How the run must have ended once a command has come by."""
    if moment == "before insert" and EVENTS[event].to_client:
        return "submit_failed" if event == "client SIGKILL" else "cancelled"
    return EVENTS[event].reason


def layers(event: str, moment: str) -> set[str]:
    """Who may have the last instance deleted."""
    if moment == "before insert" and EVENTS[event].to_client:
        return {"nobody"}
    if moment in ENDED:  # agent and client are both at it, and Compute Engine where it takes it
        return {"agent", "client", "Compute Engine"} if EVENTS[event].needs else {"agent", "client"}
    if moment == "uploading results" and event == "preemption with notice":
        return {"agent", "Compute Engine"}  # the notice may be long enough for what was missing
    return {"agent"}


CELLS = [
    pytest.param(event, moment, id=f"{event}, {moment}")
    for moment in MOMENTS
    for event in EVENTS
    if not impossible(event, moment)
]


def test_every_event_meets_every_moment_or_a_rule_says_why_not():
    left_out = [(e, m) for e in EVENTS for m in MOMENTS if impossible(e, m)]

    assert (len(EVENTS), len(MOMENTS)) == (12, 11)
    assert (len(CELLS), len(left_out)) == (92, 40)
    assert all(any(event == cell.values[0] for cell in CELLS) for event in EVENTS)


@pytest.mark.matrix(cells=4)
@pytest.mark.parametrize(("event", "moment"), CELLS)
def test_nothing_leaks_and_nothing_is_lost(cloud, event, moment):
    what = EVENTS[event]
    stage = Stage(cloud)

    with stage.stopped_at(moment, "-Pgce.ssh.via=none"):
        what.happens(stage)
    _until_quiet(stage, what, moment)

    command_at = cloud.emulator.now()
    code, output = stage.mlflow_gce("attach", stage.run_id)
    gone_at = cloud.emulator.now() if what.disk_only else command_at
    billed = gone_at - stage.at - stage.skipped
    print(f"billed for {billed:.1f} s after the event")
    run = cloud.only_run()
    told = f"\n{output}\n--- the first client:\n{stage.client.text}"
    assert cloud.emulator.instances() == [], told
    assert run.data.tags.get("gce.end_reason") == end_reason(event, moment), told
    finished = end_reason(event, moment) == "succeeded"
    assert (run.info.status == "FINISHED", code == 0) == (finished, finished), told
    assert billed <= what.minutes * 60, told
    _check_instances(stage, event, moment)
    _check_results(cloud, run, event, moment)


def _until_quiet(stage: Stage, what: Event, moment: str) -> None:
    """Until the first client has ended, and no instance is left, or only its disk."""
    assert stage.client is not None
    stage.client.end(60 if what.to_client or what.disk_only else 150)
    if what.disk_only:
        (instance,) = stage.cloud.emulator.instances()
        assert instance["status"] == "TERMINATED", "disk only until the next command or reap"
        return
    if moment != "before insert":
        wait_until(stage.cloud.inserted, 60, "the insert")
    wait_until(lambda: stage.names == [], 120, "the end of the instance")


def _check_instances(stage: Stage, event: str, moment: str) -> None:
    """One for each attempt, and the last one deleted by the layer that had to."""
    names = stage.cloud.inserted()
    assert len(set(names)) == len(names), f"two instances of one attempt: {names}"
    if layers(event, moment) == {"nobody"}:
        assert names == []
        return
    assert 1 <= len(names) <= EVENTS[event].attempts
    deletes = [call for call in stage.deletes() if names[-1] in call.path]
    first = min(deletes, key=lambda call: call.at, default=None)
    layer = "Compute Engine" if first is None else "agent" if first.caller else "client"
    assert layer in layers(event, moment)


def _check_results(cloud, run, event: str, moment: str) -> None:
    steps = [m.step for m in cloud.client.get_metric_history(run.info.run_id, "loss")]
    folder = run.info.artifact_uri.split("/", 3)[3]
    if run.info.status == "FINISHED":
        assert steps == [1, 2], "one history, each point once"
        assert cloud.read(f"{folder}/result.txt") == b"done\n"
        assert cloud.read(f"{folder}/checkpoints/epoch") == b"2"
    elif event == "trainer SIGKILL":
        assert steps == ([1] if moment == "epoch 1" else [1, 2]), "what was acknowledged"
        if moment == "epoch 2":
            assert cloud.read(f"{folder}/checkpoints/epoch") == b"1"
