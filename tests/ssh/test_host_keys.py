"""Never a connection to the wrong host, directly and through IAP."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gce_backend.emulator import Fault
from gce_backend.errors import (
    AuthenticationRefused,
    HostKeyRefused,
    InstanceNotFound,
    SshError,
    SshUnavailable,
)
from gce_backend.ssh_access import SshAccess
from gce_backend.ssh_route import Route
from gce_backend.ssh_state import HostKeys, metadata_line

from .conftest import Guest, eventually, new_guest, run
from .relay import Relay, iap_relay
from .rogue import Rogue, rogue_host


@pytest.fixture(params=["external", "iap"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def relay(guest: Guest) -> Iterator[Relay]:
    def target(name: str, port: int) -> tuple[str, int] | None:
        for instance in guest.emulator.instances():
            if instance["name"] == name:
                return instance["networkInterfaces"][0]["networkIP"], port
        return None

    with iap_relay(target) as running:
        yield running


@pytest.fixture
def rogue() -> Iterator[Rogue]:
    with rogue_host() as host:
        yield host


def route(guest: Guest, relay: Relay) -> Route:
    return replace(guest.route, iap_url=relay.url)


@dataclass(frozen=True)
class Diverted(Route):
    """Whatever the way, somebody else stands at its end."""

    address: str = "127.0.0.1"

    def open(self, via: str, project: str, zone: str, instance: dict[str, Any]) -> socket.socket:
        if via == "iap":
            return super().open(via, project, zone, instance)
        there = {**instance, "networkInterfaces": [{"networkIP": self.address}]}
        return super().open("internal", project, zone, there)


@contextmanager
def diverted(address: str, port: int) -> Iterator[Route]:
    with iap_relay(lambda name, _: (address, port)) as wrong:
        yield Diverted(port, wrong.url, address)


def another_key() -> str:
    """An ed25519 key's public half, in base64."""
    form = (Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    private = Ed25519PrivateKey.generate().private_bytes(*form)
    return str(paramiko.Ed25519Key.from_private_key(io.StringIO(private.decode())).get_base64())


class PublishedLate(SshAccess):
    """What an instance has published comes to be seen at the third look."""

    looks = 0

    def _published(self) -> HostKeys:
        self.looks += 1
        return super()._published() if self.looks > 2 else {}


def test_published_late_and_right(guest: Guest, relay: Relay, way: str) -> None:
    guest.insert()
    said: list[str] = []
    here = (guest.submission, guest.compute, guest.storage)
    access = PublishedLate(*here, route=route(guest, relay), via=way)
    with access.connect_within(30, said.append) as connection:
        assert run(connection, "echo $USER; exit 7") == (7, "mlflow\n")

    assert access.looks >= 3
    (only,) = said
    assert "has not published its SSH host keys" in only and only.endswith("trying for 30 s")


def test_another_host_in_the_instances_place(guest: Guest, rogue: Rogue, way: str) -> None:
    guest.insert()
    guest.access().connect_within(30, lambda _: None).close()
    with (
        diverted("127.0.0.1", rogue.port) as wrong,
        pytest.raises(HostKeyRefused, match="showed the ssh-rsa key SHA256:"),
    ):
        guest.access(wrong, way).connect()

    assert (rogue.connections, rogue.heard) == (1, [])


def test_another_instance_in_the_instances_place(guest: Guest, relay: Relay, way: str) -> None:
    """A host of the same make, with a key of the same kind."""
    other = new_guest(guest.emulator)
    guest.insert()
    other.insert()
    guest.access().connect_within(30, lambda _: None).close()
    other.access().connect_within(30, lambda _: None).close()
    address = other.resource()["networkInterfaces"][0]["networkIP"]
    with (
        diverted(address, guest.route.port) as wrong,
        pytest.raises(HostKeyRefused, match="showed the ssh-ed25519 key"),
    ):
        guest.access(wrong, way).connect()


def refused_by(access: SshAccess) -> None:
    """One try, once the instance has booted."""

    def is_up() -> bool:
        try:
            access.connect()
        except AuthenticationRefused:
            return True
        except SshUnavailable:
            return False
        raise AssertionError("it let us in")

    eventually(is_up, "it answers")
    access.connect()


OVERWRITE = """\
until grep -q started "$STATE_DIRECTORY/go" 2>/dev/null; do sleep 0.05; done
curl -s -X PUT -H 'Metadata-Flavor: Google' --data '{key}' \
  "http://$GCE_METADATA_HOST/computeMetadata/v1/instance/guest-attributes/hostkeys/{kind}"
touch "$STATE_DIRECTORY/done"
"""


def test_what_code_on_the_instance_publishes_later_does_not_count(guest: Guest) -> None:
    guest.insert({"startup-script": OVERWRITE.format(key=another_key(), kind="ssh-ed25519")})
    guest.access().connect_within(30, lambda _: None).close()
    pinned = guest.state.pinned(str(guest.resource()["id"]))
    state = guest.directory / "state"
    (state / "go").write_text("started")
    eventually((state / "done").exists, "the other key is published")

    assert guest.compute.guest_attributes("europe-west1-b", guest.submission.instance, "hostkeys")
    with guest.access().connect() as connection:
        assert run(connection, "echo $USER") == (0, "mlflow\n")
    assert guest.state.pinned(str(guest.resource()["id"])) == pinned


def test_another_machine_takes_the_keys_that_were_read_first(guest: Guest) -> None:
    guest.insert({"startup-script": OVERWRITE.format(key=another_key(), kind="ssh-ed25519")})
    guest.access().connect_within(30, lambda _: None).close()
    state = guest.directory / "state"
    (state / "go").write_text("started")
    eventually((state / "done").exists, "the other key is published")
    guest.state.forget()
    access = guest.access()
    assert not access.has_key

    access.make_key()

    with access.connect_within(30, lambda _: None) as connection:
        assert run(connection, "echo $USER") == (0, "mlflow\n")


def test_a_key_that_is_not_the_servers(guest: Guest, relay: Relay, way: str) -> None:
    """Guest attributes that were forged before anybody read them: no connection either."""
    guest.insert()
    guest.access().connect_within(30, lambda _: None).close()
    pins = guest.state.directory / "host_keys.json"
    identity = str(guest.resource()["id"])
    pins.write_text(json.dumps({identity: {"ssh-ed25519": another_key()}}))

    with pytest.raises(HostKeyRefused, match="not the one the instance published"):
        guest.access(route(guest, relay), way).connect()


def test_none_published_is_no_connection(guest: Guest, relay: Relay, way: str) -> None:
    guest.emulator.inject(Fault("no_ssh", resource=guest.submission.instance))
    guest.insert()

    with pytest.raises(SshUnavailable, match=r"has not published.*Tried for 1 s"):
        guest.access(route(guest, relay), way).connect_within(1, lambda _: None)
    assert relay.seen == []


def test_guest_attributes_switched_off_is_no_connection(guest: Guest) -> None:
    guest.insert({"enable-guest-attributes": "FALSE"})

    with pytest.raises(SshUnavailable, match="enable-guest-attributes=TRUE"):
        guest.access().connect_within(1, lambda _: None)


class PublishesNonsense(SshAccess):
    def _published(self) -> HostKeys:
        return {"ssh-ed25519": "no base64!", "ssh-dss": another_key()}


def test_what_is_no_key_is_none(guest: Guest) -> None:
    guest.insert()
    access = PublishesNonsense(
        guest.submission, guest.compute, guest.storage, route=guest.route, via="external"
    )

    with pytest.raises(SshUnavailable, match="has not published"):
        access.connect()
    assert guest.state.pinned(str(guest.resource()["id"])) is None


def test_a_key_the_instance_does_not_know_is_told_from_a_host_that_is_away(
    guest: Guest, relay: Relay, way: str
) -> None:
    guest.state.make_key(guest.submission.deadline)
    guest.insert(key=metadata_line(f"ssh-ed25519 {another_key()}", 4e9))

    with pytest.raises(AuthenticationRefused, match="proved who it is and refused the run's key"):
        refused_by(guest.access(route(guest, relay), way))


def test_os_login_is_named(guest: Guest) -> None:
    guest.insert({"enable-oslogin": "TRUE"})

    with pytest.raises(AuthenticationRefused, match="OS Login is not switched off"):
        refused_by(guest.access())


def test_an_expired_key_does_not_let_in(guest: Guest) -> None:
    guest.insert(key=guest.state.make_key(guest.emulator.now() - 1))

    with pytest.raises(AuthenticationRefused, match="the key has expired"):
        refused_by(guest.access())


def test_a_port_behind_a_firewall(guest: Guest, relay: Relay, way: str) -> None:
    guest.insert()
    guest.access().connect_within(30, lambda _: None).close()
    closed = replace(route(guest, relay), port=9)

    with pytest.raises(SshUnavailable, match="firewall rule"):
        guest.access(closed, way).connect()


def test_an_instance_that_is_gone(guest: Guest) -> None:
    guest.insert()
    guest.emulator.erase(guest.submission.instance)

    with pytest.raises(InstanceNotFound):
        guest.access().connect()


def test_a_run_without_ssh_says_where_its_log_is(guest: Guest) -> None:
    with pytest.raises(SshError, match=r"gce.ssh.via=none.*gs://bucket/mlflow-gce/runs/.*/log"):
        guest.access(via="none").connect()


def test_a_machine_without_the_key(guest: Guest) -> None:
    with pytest.raises(SshError, match="no SSH key of run"):
        guest.access().connect()
