"""What the relay knows, and what it accepts: pure, without a socket."""

from __future__ import annotations

from typing import Any

import pytest

from gce_backend.agent import validation
from gce_backend.agent.entities import MetricHistory
from gce_backend.agent.errors import RelayError
from gce_backend.agent.locations import Locations
from gce_backend.agent.search import matching, ordered
from gce_backend.agent.tracking_state import TrackingState

RUN = {
    "info": {"run_id": "r1", "artifact_uri": "gs://b/x/r1/artifacts", "run_name": "one"},
    "data": {
        "metrics": [{"key": "loss", "value": 2.0, "timestamp": "1764000000000", "step": "1"}],
        "params": [{"key": "lr", "value": "0.1"}],
    },
}
EXPERIMENT = {"experiment_id": "7", "name": "digits", "artifact_location": "gs://b/x"}


def known(*records: dict[str, Any]) -> TrackingState:
    state = TrackingState(EXPERIMENT, RUN)
    for seq, record in enumerate(records, 1):
        state.apply({"seq": seq, "at": 1764000000000 + seq, "method": "POST", **record})
    return state


def write(path: str, **body: Any) -> dict[str, Any]:
    return {"path": path, "body": {"run_id": "r1", **body}}


def test_a_history_holds_each_point_once() -> None:
    history = MetricHistory()
    for point in [(1.0, 10, 1), (1.0, 10, 1), (float("nan"), 11, 2), (float("nan"), 11, 2)]:
        history.add(*point)
    history.add(2.0, 10, 1)
    history.add(1.0, 10, 1, may_repeat=True)

    assert [(p["value"], p["step"]) for p in history.points("a")] == [
        (1.0, 1),
        ("NaN", 2),
        (2.0, 1),
    ]


@pytest.mark.parametrize(
    ("points", "latest"),
    [
        ([(1.0, 10, 1), (2.0, 9, 2)], 2.0),  # a higher step wins over a later time
        ([(1.0, 10, 1), (2.0, 11, 1)], 2.0),
        ([(3.0, 10, 1), (2.0, 10, 1)], 3.0),
        ([(1.0, 10, 5), (2.0, 11, 1)], 1.0),
    ],
)
def test_the_latest_value_is_the_stores(
    points: list[tuple[float, int, int]], latest: float
) -> None:
    history = MetricHistory()
    for point in points:
        history.add(*point)

    assert history.latest("a")["value"] == latest


def test_a_long_history_stays_cheap_to_ask() -> None:
    history = MetricHistory()
    for step in range(100_000):
        history.add(1.0, step, step)

    assert history.latest("a")["step"] == 99_999


def test_what_the_client_saw_is_known_at_once() -> None:
    run = known().main.to_json()

    assert run["data"]["params"] == [{"key": "lr", "value": "0.1"}]
    assert run["data"]["metrics"] == [
        {"key": "loss", "value": 2.0, "timestamp": 1764000000000, "step": 1}
    ]


def test_children_and_models_come_back_from_the_journal() -> None:
    state = known(
        {
            "path": "runs/create",
            "provisional_id": "c1",
            "body": {"run_name": "child", "tags": [{"key": "mlflow.parentRunId", "value": "r1"}]},
        },
        {"path": "runs/log-metric", "body": {"run_id": "c1", "key": "a", "value": 1.0}},
        {"path": "logged-models", "provisional_id": "m-1", "body": {"name": "net"}},
        {"path": "logged-models/m-1", "method": "PATCH", "body": {"status": "LOGGED_MODEL_READY"}},
        {"path": "logged-models/m-1/tags", "method": "PATCH", "body": {"tags": [{"key": "t"}]}},
        write("runs/log-batch", metrics=[{"key": "a", "value": 3.0, "model_id": "m-1"}]),
        write("runs/outputs", models=[{"model_id": "m-1", "step": 1}]),
        write("runs/outputs", models=[{"model_id": "m-1", "step": 1}]),
    )

    assert state.run("c1").info["artifact_uri"] == "gs://b/x/c1/artifacts"
    assert state.run("c1").to_json()["data"]["metrics"][0]["value"] == 1.0
    model = state.model("m-1").to_json()
    assert model["info"]["status"] == "LOGGED_MODEL_READY"
    assert model["info"]["artifact_uri"] == "gs://b/x/models/m-1/artifacts"
    assert model["data"]["metrics"][0]["run_id"] == "r1"
    assert state.main.model_outputs == [{"model_id": "m-1", "step": 1}]


def test_records_that_make_no_sense_are_left_to_the_store() -> None:
    state = known(
        write("runs/log-metric", key="loss", value=1.0, timestamp=1, step=2**63),
        write("runs/log-batch", metrics=[{"key": "loss", "value": "much"}]),
        write("runs/log-batch", params=["epochs"]),
        write("runs/outputs", models=[{"step": 1}]),
        write("runs/log-model", model_json="no JSON"),
        {"path": "logged-models", "body": {"name": "one without an id"}},
        write("runs/log-metric", key="loss", value=2.0, timestamp=2, step=2),
        {"path": "runs/set-tag", "body": {"run_id": "unknown", "key": "a", "value": "b"}},
        {"path": "something/new", "body": {}},
    )

    assert list(state.runs) == ["r1"]
    points = [
        (point["step"], point["value"]) for point in state.main.metrics["loss"].points("loss")
    ]
    assert points == [(1, 2.0), (2, 2.0)]


@pytest.mark.parametrize(
    ("stored", "new", "same"),
    [
        ("1e-3", "0.001", True),
        (".1", "0.1", True),
        ("0.10", "0.1", True),
        ("3", "3.0", True),
        ("'a b'", "a b", True),
        ("'it'\"'\"'s'", "it's", True),
        ("nan", "NaN", True),
        ("0.1", "0.2", False),
        ("a", "b", False),
        ("'a b'", "a  b", False),
        ("'unclosed", "unclosed", False),
        ("True", "true", False),
    ],
)
def test_parameters_that_say_the_same_are_the_same(stored: str, new: str, same: bool) -> None:
    assert validation.same_param(stored, new) is same


@pytest.mark.parametrize("key", ["", "a!b", "/a", "../a", "a" * 251, None, 3])
def test_names_that_the_store_refuses_are_refused(key: Any) -> None:
    with pytest.raises(RelayError) as caught:
        validation.check_metric({"key": key, "value": 1.0})
    assert caught.value.status == 400


@pytest.mark.parametrize("value", [None, "abc", {}, []])
def test_values_that_are_no_numbers_are_refused(value: Any) -> None:
    with pytest.raises(RelayError):
        validation.check_metric({"key": "a", "value": value})


def test_batches_have_mlflows_limits() -> None:
    validation.check_batch_limits([{}] * 1000, [], [])
    with pytest.raises(RelayError, match="at most 1000 metrics"):
        validation.check_batch_limits([{}] * 1001, [], [])
    with pytest.raises(RelayError, match="at most 100 params"):
        validation.check_batch_limits([], [{}] * 101, [])
    with pytest.raises(RelayError, match="at most 1000 metrics, params, and tags"):
        validation.check_batch_limits([{}] * 950, [{}] * 60, [])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [1, 2]),
        ("tags.mlflow.parentRunId = 'p'", [2]),
        ('tags.`mlflow.parentRunId` = "p"', [2]),
        ("params.lr = '0.1' and tag.a != 'y'", [1]),
        ("attributes.run_id = '2' AND params.lr = '0.1'", [2]),
        ("run_id = '3'", []),
        ("metrics.loss < 0.3 AND metrics.`loss` >= 1e-3", [2]),
        ("attributes.start_time > 10", [2]),
        ("run_id IN ('1', '2') AND tags.a NOT IN ('y')", [1]),
        ("tags.a LIKE '%' and params.lr ILIKE '0._'", [1]),
        ("tags.a LIKE 'X%'", []),
    ],
)
def test_filters_are_answered(text: str, found: list[int]) -> None:
    assert [int(run["info"]["run_id"]) for run in matching(RUNS, text)] == found


@pytest.mark.parametrize(
    ("order_by", "found"),
    [
        ([], [2, 1]),
        (["metrics.loss DESC"], [1, 2]),
        (["tags.a"], [1, 2]),
        (["params.lr ASC", "attributes.start_time ASC"], [1, 2]),
    ],
)
def test_they_come_in_the_order_asked_for(order_by: list[str], found: list[int]) -> None:
    assert [int(run["info"]["run_id"]) for run in ordered(RUNS, order_by)] == found


@pytest.mark.parametrize(
    "text", ["metrics.loss < '1'", "params.lr > 1", "a = 'b' OR c = 'd'", "a", "a = b"]
)
def test_other_filters_say_so(text: str) -> None:
    with pytest.raises(RelayError, match="Search on the client"):
        matching([{"info": {}}], text)


def point(key: str, value: float) -> dict[str, Any]:
    return {"key": key, "value": value, "timestamp": 1, "step": 1}


def lr() -> list[dict[str, str]]:
    return [{"key": "lr", "value": "0.1"}]


def tags(**items: str) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in items.items()]


def test_locations_go_both_ways() -> None:
    locations = Locations("gs://b/x/")

    assert locations.for_trainer("gs://b/x/r/artifacts") == "mlflow-artifacts:/b/x/r/artifacts"
    assert locations.for_trainer("gs://other/x") == "gs://other/x"
    assert locations.for_store(b'{"a": "mlflow-artifacts:/b/x/r"}') == b'{"a": "gs://b/x/r"}'
    assert locations.object_name("b/x/r/artifacts/a b") == "x/r/artifacts/a b"


@pytest.mark.parametrize(
    "path", ["b/x/../y", "b/y", "other/x/a", "b/xy", "b/x//a", "b/x/./a", "", "b/x/a\\b", "b/x/a\0"]
)
def test_paths_outside_of_the_experiment_are_refused(path: str) -> None:
    with pytest.raises(RelayError):
        Locations("gs://b/x").object_name(path)


RUNS = [
    {
        "info": {"run_id": "1", "start_time": 10},
        "data": {"params": lr(), "tags": tags(a="x"), "metrics": [point("loss", 0.5)]},
    },
    {
        "info": {"run_id": "2", "start_time": 20},
        "data": {
            "params": lr(),
            "tags": tags(**{"mlflow.parentRunId": "p"}),
            "metrics": [point("loss", 0.25)],
        },
    },
]
