"""One client at a time asks for an attempt's instance, and everybody knows where."""

import dataclasses

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.claims import Claim, ClaimLost
from gce_backend.emulator import Emulator
from gce_backend.storage import Storage
from gce_backend.submission import Submission

pytestmark = pytest.mark.flow  # the emulator's front knows the conditions of a delete

RUN = "0" * 32
FIRST = Submission(
    run_id=RUN,
    project="p",
    zone="z-1",
    instance=f"mlflow-{RUN}-1",
    bucket="b",
    paths=RunPaths("mlflow-gce", RUN),
    tracking_uri="sqlite:///none",
    deadline=2e9,
    created_at=1.5,
    client="host 1 1",
)
SECOND = dataclasses.replace(FIRST, zone="z-2", instance=f"mlflow-{RUN}-2", attempt=2)


@pytest.fixture(scope="module")
def emulator():
    with Emulator() as one:
        yield one


@pytest.fixture
def claims(emulator, monkeypatch, tmp_path):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.storage_url)
    emulator.create_bucket(tmp_path.name.replace("_", "-"))
    storage = Storage(tmp_path.name.replace("_", "-"), project="p", retry_seconds=5)
    return [Claim(storage, FIRST, 2) for _ in range(2)]


def test_the_first_one_has_it_and_the_other_is_told_what_it_asks_for(claims):
    ours, theirs = claims
    assert ours.look() is None and theirs.look() is None

    assert ours.take(SECOND)
    assert not theirs.take(SECOND), "the same, but another client's"

    assert theirs.look() == SECOND


def test_one_that_has_changed_since_it_was_looked_at_is_not_taken_over(claims):
    ours, theirs = claims
    ours.take(SECOND)
    theirs.look()
    ours.announce(dataclasses.replace(SECOND, zone="z-3"))

    assert not theirs.take(SECOND)

    assert theirs.look().zone == "z-3"


def test_who_lost_it_is_told_before_it_asks_and_after(claims):
    ours, theirs = claims
    ours.take(SECOND)
    ours.confirm()
    theirs.look()
    assert theirs.take(SECOND)

    with pytest.raises(ClaimLost):
        ours.announce(SECOND)
    with pytest.raises(ClaimLost):
        ours.confirm()
    ours.withdraw()

    assert theirs.look() == SECOND, "what is another's stays"
    theirs.withdraw()
    assert ours.look() is None
    assert ours.take(SECOND)
