"""The journal applied live: nothing a driver raises ends it, and a refusal is final."""

import threading

import pytest

from gce_backend.errors import TrackingError
from gce_backend.livesync import LiveSync, until_store_answers
from gce_backend.tracking import Tracking


def away():
    error = TrackingError("503")
    error.transient = True
    return error


def test_a_store_that_is_away_is_asked_again(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    answers = [away(), away(), None]

    def write():
        if (answer := answers.pop(0)) is not None:
            raise answer

    until_store_answers(write, "run", seconds=60)

    assert answers == []


def test_a_refusal_is_not_repeated_and_tells_what_is_safe():
    calls = []

    def write():
        calls.append(1)
        raise TrackingError("run is deleted")

    with pytest.raises(TrackingError, match=r"refuses.*Nothing is lost(.|\n)*mlflow-gce sync run"):
        until_store_answers(write, "run", seconds=60)

    assert len(calls) == 1


def test_what_a_driver_raises_does_not_end_the_thread(monkeypatch):
    monkeypatch.setattr("gce_backend.livesync._PAUSE_SECONDS", 0.01)
    went_on = threading.Event()
    raised = [ZeroDivisionError("deep in a driver"), OSError("no route")]

    class Applier:
        def apply_new(self, **_):
            if raised:
                raise raised.pop(0)
            went_on.set()

        def let_go(self):
            pass

    told = []
    with LiveSync(Applier(), None, "run", told.append):
        assert went_on.wait(20)

    assert "ZeroDivisionError" in told[0]


def test_a_store_that_cannot_be_opened_is_an_error_of_ours():
    with pytest.raises(TrackingError, match="cannot be opened"):
        Tracking("nonsense://nowhere")


def test_a_run_is_not_said_to_be_running_once_its_end_is_written(monkeypatch):
    """The status is on its way when the end is known: the end waits, and nothing comes after it."""
    monkeypatch.setattr("gce_backend.livesync._PAUSE_SECONDS", 0.01)
    written, telling, go_on = [], threading.Event(), threading.Event()

    class Applier:
        def apply_new(self, **_):
            pass

        def let_go(self):
            pass

    class Store:
        def set_running(self, run_id):
            telling.set()
            assert go_on.wait(20)
            written.append("RUNNING")

    with LiveSync(Applier(), Store(), "run", print) as live:
        live.mark_running()
        assert telling.wait(20)
        threading.Timer(0.1, go_on.set).start()
        live.end()
        written.append("FINISHED")

    assert written == ["RUNNING", "FINISHED"]
