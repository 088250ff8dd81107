"""SSH by paramiko and by OpenSSH's own clients."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from gce_backend.emulator import Emulator
from gce_backend.emulator.doors import addresses
from gce_backend.emulator.ports import usable

from .conftest import LONG, Api, eventually

pytestmark = pytest.mark.flow  # real processes and servers


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True, timeout=30
    )
    return file


def connect(instance: dict[str, Any], key: Path, user: str = "alice") -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    host = instance["networkInterfaces"][0]["accessConfigs"][0]["natIP"]

    def attempt() -> bool:
        try:
            client.connect(
                host,
                port=port(),
                username=user,
                key_filename=str(key),
                look_for_keys=False,
                allow_agent=False,
                timeout=10,
            )
        except paramiko.ssh_exception.NoValidConnectionsError:
            return False
        return True

    eventually(attempt, "SSH answers")
    return client


def port() -> int:
    """As an emulator chooses it."""
    return usable(addresses(), 22, 2222)


def metadata(key: Path, user: str = "alice") -> dict[str, Any]:
    public = key.with_suffix(".pub").read_text().strip()
    return {"items": [{"key": "ssh-keys", "value": f"{user}:{public}"}]}


@pytest.fixture
def client(api: Api, key: Path) -> Iterator[paramiko.SSHClient]:
    connection = connect(api.create(metadata=metadata(key)), key)
    yield connection
    connection.close()


def run(client: paramiko.SSHClient, command: str, stdin: bytes = b"") -> tuple[int, str]:
    channel = client.get_transport().open_session(timeout=20)  # type: ignore[union-attr]
    channel.exec_command(command)
    channel.sendall(stdin)
    channel.shutdown_write()
    output = b""
    while data := channel.recv(65536):
        output += data
    return channel.recv_exit_status(), output.decode()


def test_a_command_gives_its_output_and_exit_status(client: paramiko.SSHClient) -> None:
    assert run(client, "echo $USER; exit 7") == (7, "alice\n")


def test_a_command_reads_its_input(client: paramiko.SSHClient) -> None:
    assert run(client, "wc -c", b"x" * 300_000) == (0, "300000\n")


def test_a_command_runs_on_the_instance(emulator: Emulator, client: paramiko.SSHClient) -> None:
    code, output = run(client, "hostname; python3 -c 'import aiohttp'; echo $?")

    assert code == 0
    assert output.splitlines()[-1] == "0"


def test_a_terminal_is_one(client: paramiko.SSHClient) -> None:
    channel = client.get_transport().open_session(timeout=20)  # type: ignore[union-attr]
    channel.get_pty(width=123, height=45)
    channel.exec_command("tty; stty size")
    output = b""
    while data := channel.recv(65536):
        output += data

    assert b"/dev/pts/" in output
    assert b"45 123" in output


def test_a_shell_takes_commands_until_it_is_left(client: paramiko.SSHClient) -> None:
    channel = client.invoke_shell()
    channel.settimeout(20)
    channel.sendall(b"echo $USER has $((6 * 7))\nexit 3\n")
    output = b""
    while data := channel.recv(65536):
        output += data

    assert b"alice has 42" in output
    assert channel.recv_exit_status() == 3


def test_files_go_both_ways_and_land_at_home(
    emulator: Emulator, client: paramiko.SSHClient, tmp_path: Path
) -> None:
    (tmp_path / "up").write_bytes(b"x" * 1_000_000)
    sftp = client.open_sftp()
    sftp.put(str(tmp_path / "up"), "file")
    sftp.put(str(tmp_path / "up"), "/tmp/other")
    sftp.get("file", str(tmp_path / "down"))

    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()
    assert run(client, "ls; stat -c %s /tmp/other; rm /tmp/other")[1] == "file\n1000000\n"
    assert (emulator.instance_directory("vm") / "home/alice/file").exists()


def test_a_port_of_the_instances_can_be_reached_through_it(
    emulator: Emulator, client: paramiko.SSHClient
) -> None:
    host, _, port = emulator.storage_url.removeprefix("http://").partition(":")
    channel = client.get_transport().open_channel(  # type: ignore[union-attr]
        "direct-tcpip", (host, int(port)), ("127.0.0.1", 1), timeout=20
    )
    channel.sendall(b"GET /storage/v1/b HTTP/1.0\r\n\r\n")

    assert channel.recv(1000).startswith(b"HTTP/1.0 200")


def test_a_port_here_can_be_reached_from_the_instance(client: paramiko.SSHClient) -> None:
    transport = client.get_transport()
    assert transport is not None
    port = transport.request_port_forward("127.0.0.1", 0)
    run(client, f"exec 3<>/dev/tcp/127.0.0.1/{port}; echo from inside >&3")
    channel = transport.accept(20)

    assert channel is not None
    assert channel.recv(100) == b"from inside\n"


def test_a_background_job_outlives_its_session_and_not_the_instance(
    api: Api, client: paramiko.SSHClient
) -> None:
    assert run(client, f"nohup sleep {LONG} > log 2>&1 & echo started")[1] == "started\n"
    assert run(client, f"pgrep -f 'sleep {LONG}' | wc -l")[1].strip() != "0"
    api.finish(api.delete().json())

    found = subprocess.run(["pgrep", "-f", f"sleep {LONG}"], capture_output=True, check=False)
    assert found.stdout == b""


def test_an_unknown_key_is_refused(api: Api, client: paramiko.SSHClient, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True, timeout=30
    )
    with pytest.raises(paramiko.AuthenticationException):
        connect(api.get().json(), other)


def test_the_published_host_key_is_the_servers(api: Api, key: Path) -> None:
    import requests

    items = [*metadata(key)["items"], {"key": "enable-guest-attributes", "value": "TRUE"}]
    connection = connect(api.create(metadata={"items": items}), key)
    url = f"{api.zone}/instances/vm/getGuestAttributes"
    published = requests.get(url, params={"queryPath": "hostkeys/"}, timeout=30).json()
    served = connection.get_transport().get_remote_server_key()  # type: ignore[union-attr]
    connection.close()

    assert published["queryValue"]["items"][0]["value"] == served.get_base64()


def test_openssh_copies_a_tree(api: Api, key: Path, tmp_path: Path) -> None:
    if not shutil.which("scp"):
        pytest.skip("scp is not installed")
    connect(api.create(metadata=metadata(key)), key).close()
    host = api.get().json()["networkInterfaces"][0]["networkIP"]
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("x")
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    common = ["scp", "-q", "-r", "-P", str(port()), "-i", str(key), *options]
    subprocess.run([*common, str(tmp_path / "tree"), f"alice@{host}:"], check=True, timeout=60)
    subprocess.run([*common, f"alice@{host}:tree", str(tmp_path / "back")], check=True, timeout=60)

    assert (tmp_path / "back/sub/file").read_text() == "x"
