"""How patient a follower is: a silence is counted from when the bucket could be heard at all."""

import itertools
import types

import pytest
from submissions import submission

from gce_backend import follow
from gce_backend.console import Console
from gce_backend.errors import StorageError
from gce_backend.follow import Follower, Limits
from gce_backend.lifecycle import EndReason

START = 1_000_000.0
HERE = submission(deadline=START + 7200, created_at=START)


class World:
    """A clock that a follower's sleep moves on, and a bucket that tells what it tells then.

    Args:
        beats: seconds from the start at which the agent writes a heartbeat.
        away: from when to when the bucket does not answer.
        ends: when the agent writes its status.
        cancelled: when somebody's cancel gets through.
    """

    def __init__(self, beats=(), away=(0, 0), ends=None, cancelled=None):
        self.beats, self.away, self.ends, self.cancelled = list(beats), away, ends, cancelled
        self.passed = 0.0
        self.running_since, self.is_known = START, False
        self.wants_cancel, self.is_asked = False, True

    @property
    def is_taken(self):
        return self.cancelled is not None and self.passed >= self.cancelled

    def now(self):
        return START + self.passed

    def sleep(self, seconds):
        self.passed += seconds

    def look(self):
        return None

    def read_json(self, name):
        if self.away[0] <= self.passed < self.away[1]:
            error = StorageError("503")
            error.transient = True
            raise error
        if name == HERE.paths.heartbeat:
            at = max((beat for beat in self.beats if beat <= self.passed), default=None)
            phases = [{"phase": "fetching", "at": START}]
            return None if at is None else {"at": START + at, "attempt": 1, "phases": phases}
        if self.ends is None or self.passed < self.ends:
            return None
        return {"end_reason": "cancelled", "attempt": 1, "phases": [], "written_at": self.now()}


@pytest.fixture
def following(monkeypatch):
    def to_the_end(world):
        clock = types.SimpleNamespace(
            time=world.now,
            monotonic=world.now,
            strftime=lambda *_: "12:00:00",
            localtime=lambda at: at,
        )
        monkeypatch.setattr(follow, "time", clock)
        log = types.SimpleNamespace(show_new=lambda: None, finish=lambda: None)
        return Follower(
            HERE,
            world,
            world,
            cancelling=world,
            entered=lambda *_: None,
            console=Console(quiet=True),
            interrupts=world,
            live=types.SimpleNamespace(mark_running=lambda: None),
            log=log,
            limits=Limits(boot_seconds=600, grace_seconds=30),
        ).follow()

    return to_the_end


def every_five(start, end):
    return itertools.takewhile(lambda at: at < end, itertools.count(start, 5))


def test_a_cancel_while_the_bucket_was_away_gives_the_agent_its_time_once_it_is_back(following):
    world = World(beats=every_five(0, 100), away=(100, 900), cancelled=110, ends=1000)

    end = following(world)

    assert end.status is not None, end.detail


def test_an_agent_that_gives_signs_of_life_is_not_given_up_before_the_deadline(following):
    """Its bucket takes the heartbeat and refuses an artifact: it tries until its own deadline."""
    world = World(beats=every_five(0, 10_000), cancelled=10)

    end = following(world)

    assert end.reason is EndReason.DEADLINE
    assert world.now() > HERE.deadline


def test_a_cancelled_agent_that_has_fallen_silent_is_given_up_after_a_limit(following):
    world = World(beats=every_five(0, 200), cancelled=10)

    end = following(world)

    assert (end.status, end.reason) == (None, EndReason.CANCELLED)
    assert 195 + 300 < world.passed < 195 + 420, "what a saving agent takes, from its last sign"
    assert "the rest is lost" in end.detail


def test_a_boot_behind_a_bucket_that_was_away_has_its_time_once_it_is_back(following):
    world = World(beats=every_five(750, 2000), away=(5, 700), ends=800)

    assert following(world).status is not None
