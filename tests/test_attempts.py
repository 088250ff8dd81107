"""Going on after a preemption: by one client, with one instance, and not against a cancel."""

import dataclasses
import socket
import time
import types
import uuid

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.attempts import STATE_TAG, Attempts
from gce_backend.blueprint import Blueprint
from gce_backend.claims import Claim
from gce_backend.compute import Compute
from gce_backend.config import load_settings
from gce_backend.console import Console
from gce_backend.emulator import Emulator, Fault
from gce_backend.errors import NoCapacity, OperationTimeout, RunWaiting
from gce_backend.follow import End
from gce_backend.history import Event, History
from gce_backend.instance import Agent
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import EndReason, Phase
from gce_backend.request import GIVEN_UP, give_up
from gce_backend.storage import Storage
from gce_backend.submission import Submission

pytestmark = pytest.mark.flow  # a real emulator

TAKEN = End(None, EndReason.PREEMPTED, "taken back", taken=True)
NEVER_MADE = End(None, EndReason.SUBMIT_FAILED, "it was never created")
DEAD = f"{socket.gethostname()} 999999999 1"
FULL = {"kind": "no_capacity", "times": None}


class Store:
    """An MLflow store, as far as a request needs it."""

    uri = "sqlite:///none"

    def __init__(self):
        self.tags = {}

    def set_tags(self, run_id, tags):
        self.tags.update(tags)

    def delete_tag(self, run_id, name):
        del self.tags[name]

    def get_run(self, run_id):
        data = types.SimpleNamespace(tags=dict(self.tags))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_name="brave-bird"), data=data)


class Told(Console):
    """A console at whose warnings something may happen."""

    def __init__(self, happens=lambda: None):
        super().__init__(quiet=True)
        self._happens = happens

    def warn(self, text):
        if "trying the next zone" in text:
            self._happens()


@pytest.fixture(scope="module")
def _emulator():
    with Emulator(boot_seconds=0.01, isolated=False, limited=False) as one:
        yield one


@pytest.fixture
def emulator(_emulator, monkeypatch, tmp_path):
    for name, value in _emulator.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    _emulator.inject(Fault("no_startup_script", times=None))
    yield _emulator
    _emulator.clear_faults()
    for each in _emulator.instances():
        _emulator.erase(each["name"])


@pytest.fixture
def run(emulator, monkeypatch, tmp_path):
    """A run whose first instance was taken back: what every client finds in its bucket."""
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    emulator.create_bucket(bucket)
    monkeypatch.setenv("MLFLOW_GCE_BUCKET", bucket)
    run_id = uuid.uuid4().hex
    paths = RunPaths("mlflow-gce", run_id)
    given = {"gce.zones": "[europe-west1-b,europe-west4-a]", "gce.ssh.via": "none"}
    settings = load_settings(tmp_path, parameters={**given, "gce.max_hours": "1"})
    storage = Storage(bucket, project=emulator.project, retry_seconds=5)
    storage.put_json(paths.spec, {"attempt": 1})
    Blueprint(settings, Agent(bucket, "agent.pyz", "0" * 64)).save(storage, paths)
    first = Submission(
        run_id=run_id,
        project=emulator.project,
        zone="europe-west1-b",
        instance=f"mlflow-{run_id}-1",
        bucket=bucket,
        paths=paths,
        tracking_uri=Store.uri,
        deadline=time.time() + 3600,
        created_at=time.time() - 600,
    )
    return types.SimpleNamespace(
        first=first,
        second=dataclasses.replace(first, instance=f"mlflow-{run_id}-2", attempt=2),
        paths=paths,
        storage=storage,
        history=History(storage, paths),
        endpoints=settings.endpoints,
    )


def client(run, **told):
    return Attempts(
        run.storage,
        Store(),
        run.history,
        Compute(run.first.project, endpoint=run.endpoints.compute, retry_seconds=0.0),
        endpoints=run.endpoints,
        console=Told(**told),
    )


def go_on(run, end=TAKEN, here=None, **told):
    return client(run, **told).next(here or run.first, end, Interrupts(active=False))


def names(emulator):
    return [each["name"] for each in emulator.instances()]


def test_the_next_attempt_is_asked_for_in_another_zone(run, emulator):
    found = go_on(run)

    assert (found.attempt, found.zone) == (2, "europe-west4-a")
    assert names(emulator) == [run.second.instance]
    assert run.storage.read_json(run.paths.spec)["attempt"] == 2


def test_a_second_client_follows_what_the_first_one_asked_for(run, emulator):
    found = go_on(run)

    assert go_on(run) == found

    assert names(emulator) == [run.second.instance]
    assert client(run).outcome(run.first, TAKEN, cancels=True) is None, "it follows, and cancels"


def test_a_run_that_another_client_goes_on_with_does_not_wait_any_more(run, emulator):
    go_on(run)
    late = client(run)

    assert late.outcome(run.first, TAKEN) is None
    late.mark_waiting(run.first, TAKEN)
    late.next(run.first, TAKEN, Interrupts(active=False))

    assert STATE_TAG not in late._tracking.tags


def test_a_cancel_between_the_preemption_and_the_insert_ends_the_run(run, emulator):
    assert client(run).outcome(run.first, TAKEN) is None
    run.storage.put(run.paths.cancel, b"cancel\n")

    assert go_on(run) is EndReason.CANCELLED

    assert names(emulator) == []
    assert run.storage.read(run.paths.cancel) == b"cancel\n"
    assert client(run).outcome(run.first, TAKEN) is EndReason.CANCELLED, "no claim is left"


def test_a_signal_at_the_last_moment_keeps_every_other_client_from_going_on(run, emulator):
    pressed = types.SimpleNamespace(wants_cancel=True)

    assert client(run).next(run.first, TAKEN, pressed) is EndReason.CANCELLED

    assert go_on(run) is EndReason.CANCELLED
    assert names(emulator) == []


def test_an_insert_that_was_given_up_takes_nobodys_cancel_away(run):
    run.storage.put(run.paths.cancel, b"cancel\n")
    give_up(run.storage, run.paths)
    assert run.storage.read(run.paths.cancel) == b"cancel\n"


def test_the_mark_of_an_insert_that_was_given_up_is_no_cancel(run, emulator):
    give_up(run.storage, run.paths)
    assert run.storage.read(run.paths.cancel) == GIVEN_UP

    assert go_on(run).attempt == 2

    assert not run.storage.exists(run.paths.cancel)


def test_without_room_the_number_is_free_for_whoever_comes_next(run, emulator):
    emulator.inject(Fault(**FULL))
    with pytest.raises(RunWaiting, match="waits for attempt 2"):
        go_on(run)
    with pytest.raises(RunWaiting, match="waits for attempt 2"):
        go_on(run, NEVER_MADE, run.second)
    emulator.clear_faults()

    assert go_on(run, NEVER_MADE, run.second).instance == run.second.instance


@pytest.mark.parametrize("error", [NoCapacity("no room"), OperationTimeout("not ended")])
def test_a_client_that_wakes_late_does_nothing_to_the_instance_of_another(
    run, emulator, monkeypatch, error
):
    """Its laptop slept in the middle of the insert; the name is the same."""
    insert = Compute.insert

    def asleep(self, zone, body):
        monkeypatch.setattr(Compute, "insert", insert)
        other = Claim(run.storage, run.first, 2)
        here = other.look()
        assert other.take(dataclasses.replace(here, deadline=here.deadline + 60))
        labels = {**body["labels"], "mlflow-gce-deadline": "4000000000"}
        insert(self, zone, {**body, "labels": labels})
        raise error

    monkeypatch.setattr(Compute, "insert", asleep)
    found = go_on(run)

    assert found.instance == run.second.instance, "it follows what the other one asked for"
    assert names(emulator) == [run.second.instance]
    assert not run.storage.exists(run.paths.cancel)


def test_an_insert_without_an_answer_keeps_its_claim_until_it_cannot_come_any_more(
    run, emulator, monkeypatch
):
    def unanswered(*_):
        raise OperationTimeout("not ended after 900 s")

    with monkeypatch.context() as patch:
        patch.setattr(Compute, "insert", unanswered)
        with pytest.raises(RunWaiting):
            go_on(run)

    assert Claim(run.storage, run.first, 2).look().attempt == 2


def test_whose_status_it_is_says_which_instance_there_is_to_delete(run):
    found = go_on(run)
    status = {"attempt": 2, "instance": found.instance, "zone": found.zone}

    assert client(run).of_status(run.first, status) == found
    elsewhere = {"attempt": 1, "instance": run.first.instance, "zone": "europe-west4-a"}
    moved = dataclasses.replace(run.first, zone="europe-west4-a")
    assert client(run).of_status(run.first, elsewhere) == moved


@pytest.mark.parametrize(("client_of", "since"), [(DEAD, 60), ("another-host 1 1", 7200)])
def test_a_claim_whose_holder_is_gone_is_taken_over(run, emulator, client_of, since):
    announced = dataclasses.replace(
        run.second, client=client_of, created_at=time.time() - since, zone="europe-west1-b"
    )
    Claim(run.storage, run.first, 2).take(announced)

    assert go_on(run).attempt == 2

    assert names(emulator) == [run.second.instance]


def test_whoever_lost_the_claim_on_the_way_asks_no_more_and_follows(run, emulator):
    """It was away for long, between two zones, and the other one took it for dead."""
    emulator.inject(Fault("no_capacity", times=1))
    other = []

    def take_over():
        claim = Claim(run.storage, run.first, 2)
        stale = claim.look()
        claim.take(dataclasses.replace(stale, client=DEAD, created_at=time.time() - 60))
        other.append(go_on(run))

    found = go_on(run, happens=take_over)

    assert found == other[0]
    assert names(emulator) == [run.second.instance]
    assert len([c for c in emulator.calls if run.second.instance in str(c.body)]) == 2


def test_the_hours_that_are_left_are_counted_once_the_claim_is_ours(run, emulator):
    used = time.time() - 3600
    run.history.record(Event(1, Phase.CREATING, used))
    end = dataclasses.replace(TAKEN, at=used + 3599)

    assert client(run).outcome(run.first, end) is EndReason.PREEMPTED
    assert go_on(run, end) is EndReason.PREEMPTED

    assert names(emulator) == []
    assert Claim(run.storage, run.first, 2).look() is None


def test_hours_without_an_instance_are_none_of_the_runs(run, emulator):
    """Taken after a minute; the client that comes back comes two days later."""
    used = time.time() - 2 * 86400
    run.history.record(Event(1, Phase.CREATING, used))
    end = dataclasses.replace(TAKEN, at=used + 60)

    assert go_on(run, end).attempt == 2

    (instance,) = emulator.instances()
    assert float(instance["scheduling"]["maxRunDuration"]["seconds"]) > 3500
