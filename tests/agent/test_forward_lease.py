"""The agent and the clients take turns at a run's journal, by one lease in the bucket."""

from __future__ import annotations

import time

import pytest

from gce_backend.agent import forward_lease
from gce_backend.agent.forward_lease import Lease, LeaseTaken
from gce_backend.agent.metadata import MetadataServer
from gce_backend.agent.storage import Storage
from gce_backend.lease import Lease as ClientLease
from gce_backend.storage import Storage as ClientStorage

from .cloud import Bucket, ControlPlane, Gcs
from .front import Front

pytestmark = pytest.mark.flow  # a real storage server

NAME = "runs/r/sync.lock"


def lease(front: Front, bucket: Bucket, plane: ControlPlane, owner: str = "agent") -> Lease:
    return Lease(Storage(MetadataServer(plane.address), front.url), bucket.name, NAME, owner)


@pytest.fixture
def client(bucket: Bucket, gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> ClientLease:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    return ClientLease(ClientStorage(bucket.name, project="test"), NAME)


def test_a_client_and_the_agent_take_turns(
    front: Front, bucket: Bucket, plane: ControlPlane, client: ClientLease
) -> None:
    agent = lease(front, bucket, plane)
    assert client.take()
    with pytest.raises(LeaseTaken):
        agent.take()
    client.give_back()
    agent.take()
    agent.check()
    assert not client.take()
    agent.give_back()
    assert bucket.find(NAME) is None
    assert client.take()
    client.give_back()


def test_an_agent_that_was_started_again_has_it_still_and_a_dead_client_loses_it(
    front: Front, bucket: Bucket, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_lease, "EXPIRES_S", 0.5)
    killed, again = lease(front, bucket, plane), lease(front, bucket, plane)
    killed.take()
    killed._over.set()  # its process is gone, and renews nothing
    again.take()
    again._over.set()
    heir = lease(front, bucket, plane, "another")
    with pytest.raises(LeaseTaken):
        heir.take()
    time.sleep(0.6)
    heir.take()
    heir.give_back()


def test_a_lost_reply_does_not_lose_it(front: Front, bucket: Bucket, plane: ControlPlane) -> None:
    lost: list[str] = []

    def lose_once(method: str, path: str) -> bool:
        if method == "POST" and not lost:
            lost.append(path)
            return True
        return False

    front.lose_reply = lose_once
    one = lease(front, bucket, plane)
    one.take()
    one.check()
    one.give_back()
    assert len(lost) == 1
    assert bucket.find(NAME) is None
