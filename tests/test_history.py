"""The history beside the run: each phase once, attempts in order, never a reason to fail."""

from gce_backend.agent.paths import RunPaths
from gce_backend.errors import StorageError
from gce_backend.history import Event, History, seconds_used
from gce_backend.lifecycle import Phase

PATHS = RunPaths("mlflow-gce", "0" * 32)


def event(attempt, phase, at, why=""):
    return Event(attempt, phase, at, why, "z", f"i-{attempt}")


def test_what_is_recorded_is_read_back_in_order_and_once(storage):
    history = History(storage, PATHS)
    events = [
        event(1, Phase.CREATING, 10.0),
        event(1, Phase.RUNNING, 20.0),
        event(1, Phase.DELETING, 30.0),
        event(1, Phase.ORPHANED, 31.0),
        event(1, Phase.DELETING, 40.0),
        event(1, Phase.DELETED, 41.0),
        event(2, Phase.CREATING, 50.0),
        event(2, Phase.DELETED, 59.0),
    ]
    assert history.read() == []

    for each in events:
        history.record(each)
        history.record(each)  # another client saw the same

    assert history.read() == events
    assert seconds_used(events) == 31.0 + 9.0


def test_what_comes_back_to_an_attempt_that_has_ended_adds_nothing(storage):
    history = History(storage, PATHS)
    for phase, at in ((Phase.CREATING, 10.0), (Phase.DELETING, 30.0), (Phase.DELETED, 31.0)):
        history.record(event(1, phase, at))

    for phase in (Phase.RUNNING, Phase.DELETING, Phase.ORPHANED, Phase.DELETED):
        history.record(event(1, phase, 7200.0))

    assert [each.at for each in history.read()] == [10.0, 30.0, 31.0]


def test_waiting_for_room_uses_no_time(storage):
    """Attempt 2 was asked for in vain, and hours later again; attempt 3 was never made."""
    history = History(storage, PATHS)
    for each in (
        event(1, Phase.CREATING, 10.0),
        event(1, Phase.DELETED, 40.0),
        event(2, Phase.CREATING, 50.0),
        event(2, Phase.CREATING, 7200.0),
        event(2, Phase.RUNNING, 7260.0),
        event(2, Phase.DELETING, 7300.0),
        event(2, Phase.DELETED, 7300.0),
        event(3, Phase.CREATING, 9000.0),
    ):
        history.record(each)

    assert len(history.read()) == 8
    assert seconds_used(history.read()) == 30.0 + 100.0


def test_a_bucket_that_is_away_fails_nothing():
    class Away:
        def read_json(self, name):
            raise StorageError("503")

    History(Away(), PATHS).record(event(1, Phase.CREATING, 1.0))
