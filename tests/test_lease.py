"""The lease in the bucket: one holder at a time, whatever becomes of the one before."""

import threading
import time

import pytest

from gce_backend import lease as module
from gce_backend.lease import Lease, LeaseLost

pytestmark = pytest.mark.flow  # a real storage server

NAME = "runs/r/sync.lock"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_RENEW_SECONDS", 0.1)
    monkeypatch.setattr(module, "_SAFE_SECONDS", 0.8)
    monkeypatch.setattr(module, "_EXPIRES_SECONDS", 1.0)


def until_taken(lease, seconds=10):
    end = time.monotonic() + seconds
    while not lease.take():
        assert time.monotonic() < end, "the lease stayed taken"
        time.sleep(0.05)


def test_one_of_many_has_it_and_the_next_when_it_is_given_back(storage):
    leases = [Lease(storage, NAME) for _ in range(4)]
    taken = []
    threads = [threading.Thread(target=lambda one=one: taken.append(one.take())) for one in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken) == [False, False, False, True]
    for lease in leases:
        lease.give_back()
    assert not storage.exists(NAME)
    assert leases[0].take()
    leases[0].give_back()


def test_a_holder_that_works_for_long_keeps_it(storage):
    holder, other = Lease(storage, NAME), Lease(storage, NAME)
    assert holder.take()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert not other.take()
        holder.check()
        time.sleep(0.05)
    holder.give_back()


def test_what_a_dead_holder_left_is_taken_over_and_the_dead_one_knows(storage):
    dead, heir = Lease(storage, NAME), Lease(storage, NAME)
    assert dead.take()
    dead._over.set()  # as if its process slept: it renews no more
    started = time.monotonic()

    until_taken(heir)

    assert time.monotonic() - started > 1.0
    heir.check()
    with pytest.raises(LeaseLost, match=r"gs://.*sync\.lock was not renewed") as caught:
        dead.check()
    assert caught.value.transient
    dead.give_back()  # which leaves the heir's alone
    assert storage.exists(NAME)
    heir.give_back()


def test_a_holder_whose_lease_was_taken_over_finds_out_when_it_renews(storage):
    holder = Lease(storage, NAME)
    assert holder.take()
    storage.put(NAME, b"somebody else's")
    holder._renewer.join(timeout=5)

    with pytest.raises(LeaseLost):
        holder.check()
    holder.give_back()
    assert storage.read(NAME) == b"somebody else's"
