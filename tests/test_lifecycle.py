"""The lifecycle table is a law: these tests prove the graph, not examples of it."""

import itertools

import pytest

from gce_backend.lifecycle import (
    NEXT,
    OUTCOME,
    EndReason,
    IllegalTransition,
    Lifecycle,
    Phase,
)

BILLING = set(Phase) - {Phase.QUEUED, Phase.DELETED}
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


def test_catching_up_passes_through_the_phases_between():
    life = Lifecycle(phase=Phase.CREATING)

    life.catch_up(Phase.RUNNING, at=3.0)

    assert [s.phase for s in life.history] == [Phase.BOOTING, Phase.RUNNING]


@pytest.mark.parametrize("phase", [Phase.CREATING, Phase.BOOTING])
def test_catching_up_claims_nothing_that_need_not_have_been(phase):
    """An instance that never reported in has not run the entry point."""
    life = Lifecycle(phase=phase)

    life.catch_up(Phase.DELETING, at=3.0)

    assert [s.phase for s in life.history] == [Phase.DELETING]


def test_catching_up_with_what_is_passed_changes_nothing():
    life = Lifecycle(phase=Phase.CREATING)
    life.catch_up(Phase.COLLECTING, at=3.0)
    before = list(life.history)

    life.catch_up(Phase.BOOTING, at=4.0)

    assert (life.phase, life.history) == (Phase.COLLECTING, before)


def test_only_what_was_taken_from_the_run_lets_it_go_on():
    assert {r for r in EndReason if OUTCOME[r].goes_on} == {
        EndReason.PREEMPTED,
        EndReason.INSTANCE_LOST,
    }
