"""An instance's exception, told as data and raised here."""

from __future__ import annotations

import json
import traceback
from typing import Any

import pytest

from gce_backend.sweep.errors import in_hydras_words, rebuilt
from gce_backend.sweep.job.run import describe, plain_value


class Odd(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def sent(error: BaseException) -> BaseException:
    """As it arrives: over JSON."""
    return rebuilt(json.loads(json.dumps(describe(error))))


def failing_task() -> None:
    try:
        raise KeyError("the cause")
    except KeyError as cause:
        raise ValueError("the failure", 7) from cause


def caught() -> BaseException:
    try:
        failing_task()
    except ValueError as error:
        return error
    raise AssertionError


def test_class_arguments_frames_and_cause_come_back() -> None:
    error = sent(caught())

    assert type(error) is ValueError
    assert error.args == ("the failure", 7)
    frames = traceback.extract_tb(error.__traceback__)
    assert [frame.name for frame in frames] == ["caught", "failing_task"]
    assert frames[-1].filename == __file__
    assert frames[-1].line == 'raise ValueError("the failure", 7) from cause'
    told = "".join(traceback.format_exception(error))
    assert "KeyError: 'the cause'" in told
    assert "direct cause" in told


@pytest.mark.parametrize("error", [Odd("a", "b"), OSError(object()), BaseException("x")])
def test_what_cannot_be_made_again_is_told_in_words(error: BaseException) -> None:
    found = sent(error)

    assert type(found) is RuntimeError
    assert str(found) == f"{type(error).__qualname__}: {error}"


def test_a_class_is_never_taken_that_is_no_exception() -> None:
    told = describe(ValueError("echo"))

    found = rebuilt({**told, "module": "os", "type": "system"})

    assert str(found) == "system: echo"


class Number:
    """As NumPy's and PyTorch's are."""

    ndim, size = 0, None

    def item(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("value", "plain", "exact"),
    [
        (None, None, True),
        (1.5, 1.5, True),
        (("a", 2), ["a", 2], True),
        ({"loss": Number()}, {"loss": 0.5}, True),
        ({1: 2}, "{1: 2}", False),
        ([{3}], ["{3}"], False),
    ],
)
def test_return_values_come_back_as_plain_data(value: Any, plain: Any, exact: bool) -> None:
    assert plain_value(value) == (plain, exact)


ADVICE = "another machine (-P machine=…), other zones (-P gce.zones=[…]), or -P gce.ssh.via=iap"


@pytest.mark.parametrize(
    ("own_nodes", "told"),
    [
        (True, "another machine (machine=…), other zones (gce.zones=[…]), or gce.ssh.via=iap"),
        (
            False,
            "another machine (hydra.launcher.machine=…), other zones "
            "(hydra.launcher.gce={zones:[…]}), or hydra.launcher.gce={ssh:{via:iap}}",
        ),
    ],
)
def test_advice_is_what_one_can_write_behind_the_program(own_nodes: bool, told: str) -> None:
    assert in_hydras_words(ADVICE, own_nodes=own_nodes) == told
