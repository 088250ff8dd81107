"""The ports of instances, where the usual ones cannot be had."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gce_backend.emulator.doors import addresses
from gce_backend.emulator.ports import free_port, usable


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on at every address of this machine."""
    port = free_port()
    with socket.create_server(("0.0.0.0", port)):
        yield port


def test_a_port_that_is_taken_everywhere_is_passed_over(taken: int) -> None:
    other = free_port()

    assert usable(addresses(), taken, other) == other
    assert usable(addresses(), taken) == 0


def test_a_port_that_is_taken_on_one_address_is_none_the_worse() -> None:
    port = free_port()
    with socket.create_server(("127.1.0.1", port)):
        assert usable(["127.1.0.1", "127.1.0.2"], port) == port
        assert usable(["127.1.0.1"], port) == 0


# In a network of its own: an instance whose SSH server answers where it is said.
PROGRAM = """
import contextlib, json, socket, sys
from gce_backend.emulator import Emulator
from emulator.conftest import Api, eventually

def banner(place):
    try:
        with socket.create_connection(place, timeout=5) as connection:
            return connection.recv(4)
    except ConnectionRefusedError:
        return b""

with contextlib.ExitStack() as stack:
    for port in json.loads(sys.argv[1]):
        stack.enter_context(socket.create_server(("0.0.0.0", port)))
    emulator = stack.enter_context(Emulator(boot_seconds=0.04))
    api = Api(emulator.compute_url, emulator.project)
    instance = api.create()
    address = instance["networkInterfaces"][0]["networkIP"]
    port = int(emulator.env["GCE_EMULATOR_SSH_PORT"])
    eventually(lambda: banner((address, port)) == b"SSH-", "SSH answers")
    print(port, flush=True)
"""


@pytest.mark.flow
@pytest.mark.parametrize(
    ("taken", "privileges", "expected"),
    [
        ([22, 80], [], "2222"),
        ([22, 80, 2222], [], None),
        ([], ["setpriv", "--bounding-set=-net_bind_service"], "2222"),
    ],
)
def test_ssh_answers_where_the_environment_says(
    taken: list[int], privileges: list[str], expected: str | None
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a network of its own needs root")
    program = [*privileges, sys.executable, "-c", PROGRAM, str(taken)]
    script = f"ip link set lo up && exec {shlex.join(program)}"
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert expected in (done.stdout.strip(), None)
