"""The IAP client against a relay that gcloud's own client is content with."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from gce_backend.errors import ConfigError, SshError, SshUnavailable
from gce_backend.iap import open_tunnel
from gce_backend.ssh import Connection

from .conftest import ZONE, Guest, eventually, run, via
from .relay import Relay, iap_relay


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate and key for localhost, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "localhost.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(certificate.public_bytes(Encoding.PEM) + private)
    return file


@pytest.fixture
def secure_relay(guest: Guest, certificate: Path) -> Iterator[Relay]:
    def target(name: str, port: int) -> tuple[str, int] | None:
        for instance in guest.emulator.instances():
            if instance["name"] == name:
                return instance["networkInterfaces"][0]["networkIP"], port
        return None

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with iap_relay(target, tls) as relay:
        yield relay


@pytest.fixture
def up(guest: Guest) -> Guest:
    guest.insert()
    guest.access().connect_within(30, lambda _: None).close()
    return guest


def test_an_ssh_session_with_large_answers_over_tls(
    up: Guest, secure_relay: Relay, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("MLFLOW_GCE_IAP_URL", secure_relay.url)
    size = 5_000_000
    there = via(up, "iap")
    with there.access(
        there.route.of({**up.emulator.env, **os.environ}, emulated=True)
    ).connect() as c:
        assert run(c, f"head -c {size} /dev/zero | tr '\\0' x") == (0, "x" * size)

    (seen,) = secure_relay.seen
    query = {"project", "zone", "instance", "interface", "port", "newWebsocket"}
    assert {key: seen[key] for key in query} == {
        "project": up.submission.project,
        "zone": ZONE,
        "instance": up.submission.instance,
        "interface": "nic0",
        "port": str(up.route.port),
        "newWebsocket": "True",
    }
    assert seen["origin"] == "bot:iap-tunneler"
    assert seen["sec-websocket-protocol"] == "relay.tunnel.cloudproxy.app"
    assert secure_relay.acks == sorted(secure_relay.acks)
    assert secure_relay.acks[-1] <= secure_relay.sent
    assert secure_relay.sent - secure_relay.acks[-1] <= 3 * 16384
    assert secure_relay.largest <= 16384


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_breaks_is_made_again_and_every_byte_comes_once(
    echo: tuple[str, int],
) -> None:
    data = os.urandom(4_000_000)
    with iap_relay(lambda name, port: echo) as relay:
        with open_tunnel("p", ZONE, "instance", 22, url=relay.url) as tunnel:
            threading.Thread(target=tunnel.sendall, args=(data,), daemon=True).start()
            came = bytearray()
            while len(came) < len(data):
                before = len(came) // 500_000
                came += tunnel.recv(65536)
                if len(came) // 500_000 > before:
                    relay.cut()
            tunnel.sendall(b"end")  # over a connection that stands: nothing else says goodbye
            assert tunnel.recv(3) == b"end"
        assert bytes(came) == data
        assert relay.reconnected > 1
        eventually(lambda: not relay.sessions, "the relay's session ends with ours")


def test_a_session_that_the_relay_knows_no_more_ends_the_socket(echo: tuple[str, int]) -> None:
    with (
        iap_relay(lambda name, port: echo) as relay,
        open_tunnel("p", ZONE, "instance", 22, url=relay.url) as tunnel,
    ):
        tunnel.sendall(b"x")
        assert tunnel.recv(1) == b"x"
        relay.status = 404
        relay.cut()
        tunnel.settimeout(20)
        assert tunnel.recv(1) == b""


def test_a_relay_that_is_away_is_tried_again_until_the_user_leaves(
    echo: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gce_backend.iap._FIRST_PAUSE", 0.05)
    before = threading.active_count()
    with iap_relay(lambda name, port: echo) as relay:
        with open_tunnel("p", ZONE, "instance", 22, url=relay.url) as tunnel:
            relay.status = 503
            relay.cut()
            tunnel.sendall(b"said while it was away")
            threading.Timer(0.5, lambda: setattr(relay, "status", 0)).start()
            tunnel.settimeout(20)
            assert tunnel.recv(100) == b"said while it was away"
            relay.status = 503
            relay.cut()
        # One thread is the relay's.
        eventually(lambda: threading.active_count() <= before + 3, "no thread stays behind")


def test_our_token_goes_to_no_other_host_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="must be wss://"):
        open_tunnel("p", ZONE, "i", 22, url="ws://relay.example.com/v4", token=lambda: "secret")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, SshError, "roles/iap.tunnelResourceAccessor"),
        (403, SshError, "roles/iap.tunnelResourceAccessor"),
        (404, SshUnavailable, "or the instance is not there yet"),
        (503, SshUnavailable, "HTTP 503"),
    ],
)
def test_a_refused_handshake_says_what_is_missing(
    status: int, error: type[SshError], words: str
) -> None:
    with iap_relay(lambda name, port: None) as relay:
        relay.status = status
        with pytest.raises(error, match=words) as raised:
            open_tunnel("p", ZONE, "instance", 22, url=relay.url)

    assert type(raised.value) is error


def test_a_port_that_the_relay_does_not_reach() -> None:
    with (
        iap_relay(lambda name, port: None) as relay,
        pytest.raises(SshUnavailable, match=r"4003.*tcp:22 from 35\.235\.240\.0/20"),
    ):
        open_tunnel("p", ZONE, "instance", 22, url=relay.url)


def test_a_relay_that_is_not_there() -> None:
    with iap_relay(lambda name, port: None) as relay:
        pass
    with pytest.raises(SshUnavailable, match="IAP did not answer"):
        open_tunnel("p", ZONE, "instance", 22, url=relay.url)


def test_a_host_without_a_certificate_gets_no_token(secure_relay: Relay) -> None:
    with pytest.raises(SshUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        open_tunnel("p", ZONE, "instance", 22, url=secure_relay.url, token=lambda: "secret")
    assert secure_relay.seen == []


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_the_relay_satisfies_gcloud(up: Guest, secure_relay: Relay, certificate: Path) -> None:
    """So what our client is tested against is what gcloud's client expects of Google's relay."""
    words = [
        *("compute", "start-iap-tunnel", up.submission.instance, str(up.route.port)),
        *("--listen-on-stdin", f"--zone={ZONE}", f"--project={up.submission.project}"),
        f"--iap-tunnel-url-override={secure_relay.url}",
    ]
    token = certificate.with_name("token")
    token.write_text("ya29.token")
    environment = {
        **os.environ,
        **up.emulator.env,
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": str(certificate),
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(token),
    }
    del environment["CLOUDSDK_AUTH_DISABLE_CREDENTIALS"]
    ours, theirs = socket.socketpair()
    gcloud = subprocess.Popen(
        ["gcloud", *words], env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
    )
    theirs.close()
    try:
        with Connection.open(
            ours,
            instance=up.submission.instance,
            user="mlflow",
            key_file=up.state.key_file,
            host_keys=up.state.pinned(str(up.resource()["id"])) or {},
        ) as connection:
            command = "head -c 200000 /dev/zero | tr '\\0' x; echo $USER"
            assert run(connection, command) == (0, "x" * 200_000 + "mlflow\n")
    finally:
        gcloud.kill()
        print(gcloud.communicate(timeout=20)[1].decode())
    assert secure_relay.acks == sorted(secure_relay.acks) and secure_relay.acks
    assert secure_relay.seen[-1]["authorization"] == "Bearer ya29.token"
