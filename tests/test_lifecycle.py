"""The lifecycle table is a law: these tests prove the graph, not examples of it."""

import itertools

import pytest

from gce_backend.lifecycle import (
    BILLING,
    NEXT,
    OUTCOME,
    EndReason,
    IllegalTransition,
    Lifecycle,
    Phase,
)

ALL_PAIRS = list(itertools.product(Phase, Phase))


def reachable(start: Phase, forbidden: Phase | None = None) -> set[Phase]:
    seen, todo = {start}, [start]
    while todo:
        for phase in NEXT[todo.pop()]:
            if phase is not forbidden and phase not in seen:
                seen.add(phase)
                todo.append(phase)
    return seen


def test_every_phase_has_a_row():
    assert set(NEXT) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_deleted_is_reachable_from_everywhere(phase):
    assert Phase.DELETED in reachable(phase)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_reachable_from_queued(phase):
    assert phase in reachable(Phase.QUEUED)


def test_only_deleted_is_final():
    assert [phase for phase in Phase if not NEXT[phase]] == [Phase.DELETED]


@pytest.mark.parametrize("phase", sorted(BILLING - {Phase.DELETING}, key=lambda p: p.value))
def test_nothing_that_bills_reaches_deleted_except_through_deleting(phase):
    assert Phase.DELETED not in reachable(phase, forbidden=Phase.DELETING)


@pytest.mark.parametrize(("start", "to"), ALL_PAIRS)
def test_a_refused_step_raises_and_changes_nothing(start, to):
    life = Lifecycle(phase=start)

    if to in NEXT[start]:
        life.advance(to, at=1.0, why="test")
        assert life.phase is to
    else:
        with pytest.raises(IllegalTransition):
            life.advance(to, at=1.0)
        assert (life.phase, life.history) == (start, [])


def test_every_end_reason_has_an_outcome():
    assert set(OUTCOME) == set(EndReason)


def test_outcomes_use_mlflows_words():
    assert {outcome.mlflow_status for outcome in OUTCOME.values()} == {
        "FINISHED",
        "FAILED",
        "KILLED",
    }


def test_only_success_is_finished():
    assert [r for r in EndReason if OUTCOME[r].mlflow_status == "FINISHED"] == [EndReason.SUCCEEDED]


def test_the_first_end_reason_stays():
    life = Lifecycle()

    life.end(EndReason.CANCELLED)
    life.end(EndReason.INSTANCE_LOST)

    assert life.end_reason is EndReason.CANCELLED


def test_catching_up_passes_through_the_phases_between():
    life = Lifecycle(phase=Phase.CREATING)

    life.catch_up(Phase.COLLECTING, at=3.0)

    assert [s.phase for s in life.history] == [Phase.BOOTING, Phase.RUNNING, Phase.COLLECTING]


def test_seconds_by_phase_adds_up_to_the_whole_life():
    life = Lifecycle()
    life.advance(Phase.CREATING, at=10.0)
    life.advance(Phase.BOOTING, at=12.0)
    life.advance(Phase.RUNNING, at=15.0)

    seconds = life.seconds_by_phase(until=25.0)

    assert seconds == {Phase.CREATING: 2.0, Phase.BOOTING: 3.0, Phase.RUNNING: 10.0}
