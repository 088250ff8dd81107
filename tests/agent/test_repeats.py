"""An attempt that goes on from a checkpoint leaves one history, not two."""

from __future__ import annotations

import tracemalloc
from typing import Any

from gce_backend.agent.entities import Json, Run
from gce_backend.agent.repeats import Repeats


def point(key: str, step: int, value: float, at: int, **more: Any) -> Json:
    return {"key": key, "value": value, "timestamp": at, "step": step, **more}


def a_run(*points: Json) -> tuple[Run, Repeats]:
    """A run with an earlier attempt's points, and what is remembered of them."""
    run = Run.from_json({"info": {"run_id": "1"}, "data": {"metrics": points}})
    repeats = Repeats("1")
    repeats.remember(run)
    return run, repeats


def test_work_done_again_is_not_logged_again() -> None:
    run, repeats = a_run(point("loss", 1, 0.5, 10), point("loss", 2, 0.4, 20))
    again, new = point("loss", 2, 0.41, 99), point("loss", 3, 0.3, 100)

    assert repeats.without(run, [again, new]) == [new]


def test_the_same_points_given_again_are_never_new() -> None:
    run, repeats = a_run(point("loss", 1, float("inf"), 10))

    for _ in range(3):
        assert repeats.without(run, [point("loss", 1, "Infinity", 10)]) == []  # type: ignore[arg-type]


def test_metrics_without_steps_go_on() -> None:
    run, repeats = a_run(point("seen", 0, 1, 10), point("seen", 0, 2, 20))

    assert len(repeats.without(run, [point("seen", 0, 2, 30), point("seen", 0, 3, 40)])) == 2


def test_a_metric_without_steps_that_was_logged_once_goes_on() -> None:
    run, repeats = a_run(point("best", 0, 0.90, 10))

    better = point("best", 0, 0.95, 30)
    assert repeats.without(run, [better]) == [better]


def test_the_first_step_done_again_is_not_logged_again_where_it_says_the_same() -> None:
    run, repeats = a_run(point("loss", 0, 0.5, 10))

    again = point("loss", 0, 0.5, 99)
    assert repeats.without(run, [again]) == []
    assert repeats.without(run, [again]) == [again]  # the second is something else


def test_steps_in_any_order_are_known_where_they_have_one_point() -> None:
    run, repeats = a_run(*(point("loss", step, 1, at) for at, step in enumerate((5, 3, 9, 3, -1))))

    again = [point("loss", step, 7, 99) for step in (-1, 3, 4, 5, 9, 10)]
    assert [one["step"] for one in repeats.without(run, again)] == [3, 4, 10]
    assert len(repeats.without(run, again)) == len(again)  # each is known once


def test_what_is_remembered_takes_little_beside_the_history() -> None:
    """A second attempt has it all in memory twice otherwise."""
    run, count = Run.from_json({"info": {"run_id": "1"}}), 100_000
    for step in range(count):
        run.add_metric(point("loss", step, 0.5, step))
    repeats = Repeats("1")
    tracemalloc.start()
    repeats.remember(run)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 20 * count
    assert repeats.without(run, [point("loss", count - 1, 0.5, count)]) == []


def test_other_metrics_other_runs_and_a_models_metrics_are_let_through() -> None:
    run, repeats = a_run(point("loss", 1, 0.5, 10))
    child = Run.from_json({"info": {"run_id": "2"}})

    assert repeats.without(run, [point("accuracy", 1, 0.5, 11)])
    assert repeats.without(child, [point("loss", 1, 0.6, 11)])
    assert repeats.without(run, [point("loss", 1, 0.5, 10, model_id="m-1")])
