"""The command, and that nothing is left after a stop, a Ctrl-C or a kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from gce_backend.emulator import Emulator, RootInUse, leftovers

from .conftest import LONG, Api, eventually

pytestmark = pytest.mark.flow

COMMAND = [sys.executable, "-m", "gce_backend.emulator.command"]

# Starts an instance whose processes would outlive everything, then waits.
PROGRAM = """
import sys, time
from pathlib import Path
from gce_backend.emulator import Emulator
from emulator.conftest import Api
with Emulator(Path(sys.argv[1]), boot_seconds=0.04) as emulator:
    emulator.create_bucket("kept")
    api = Api(emulator.compute_url, emulator.project)
    api.create(startup=f"trap '' TERM; setsid setsid sleep {sys.argv[2]} & sleep {sys.argv[2]}")
    print(emulator.storage_url, flush=True)
    time.sleep(600)
"""


# A client of `emulator exec` that makes such an instance and is ended by a signal itself.
CLIENT = """
import os, signal, sys, time
from emulator.conftest import Api
signal.signal(signal.SIGINT, signal.SIG_DFL)
api = Api(os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"], "emulator-project")
api.create(startup=f"trap '' TERM; setsid setsid sleep {sys.argv[1]} & sleep {sys.argv[1]}")
print("up", flush=True)
time.sleep(600)
"""


def run(*words: str, root: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, words[0], "--root", str(root), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def sleepers() -> list[str]:
    return subprocess.run(
        ["pgrep", "-f", f"sleep {LONG}"], capture_output=True, text=True, check=False
    ).stdout.split()


def test_exec_gives_the_environment_and_the_commands_exit_code(tmp_path: Path) -> None:
    script = 'test -n "$STORAGE_EMULATOR_HOST" && echo $MLFLOW_GCE_BUCKET && exit 7'
    done = run("exec", "--bucket", "mine", "--", "bash", "-c", script, root=tmp_path)

    assert done.returncode == 7, done.stderr
    assert done.stdout == "mine\n"


@pytest.mark.parametrize("name", ["a/b", "gs://b", "A", "-a", ""])
def test_what_no_bucket_can_be_called_is_refused_before_anything_starts(
    tmp_path: Path, name: str
) -> None:
    for words in (["exec", "--bucket", name, "true"], ["start", "--bucket", name]):
        done = run(*words, root=tmp_path / "root")

        assert done.returncode == 2 and "--bucket" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "root").exists()


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "root"

    for words in (["exec", "true"], ["start"]):
        done = run(*words, root=root)

        assert done.returncode == 1 and str(root) in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_start_env_stop(tmp_path: Path) -> None:
    started = run("start", root=tmp_path)
    again = run("start", root=tmp_path)
    environment = run("env", root=tmp_path).stdout
    values = dict(line.removeprefix("export ").split("=", 1) for line in environment.splitlines())
    answer = requests.get(values["STORAGE_EMULATOR_HOST"] + "/storage/v1/b", timeout=30)
    stopped = run("stop", root=tmp_path)

    assert started.returncode == 0, started.stderr
    assert again.returncode == 1 and "runs already" in again.stderr
    assert answer.json()["items"][0]["name"] == values["MLFLOW_GCE_BUCKET"]
    assert stopped.returncode == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(values["STORAGE_EMULATOR_HOST"], timeout=5)
    assert run("env", root=tmp_path).returncode == 1


def test_the_delays_of_the_real_cloud_pass_by_the_clock(tmp_path: Path) -> None:
    run("start", "--boot-seconds", "1000", "--ssh-seconds", "500", root=tmp_path)
    try:
        environment = run("env", root=tmp_path).stdout
        values = dict(
            line.removeprefix("export ").split("=", 1) for line in environment.splitlines()
        )
        url = values["CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"]
        clock = url.replace("/compute/v1/", "/_emulator/clock")
        api = Api(url, "emulator-project")
        api.insert(startup="echo booted")
        address = api.get().json()["networkInterfaces"][0]["networkIP"]
        place = (address, int(values["GCE_EMULATOR_SSH_PORT"]))
        seen = []
        for seconds, known in (
            (0, lambda: api.get().json()["status"] == "PROVISIONING"),
            (251, lambda: api.get().json()["status"] == "STAGING"),
            (251, lambda: api.get().json()["status"] == "RUNNING"),
            (501, lambda: "booted" in api.serial().splitlines()),
            (501, lambda: answers(place)),
        ):
            seen.append(answers(place))
            requests.post(clock, json={"advance": seconds}, timeout=30)
            eventually(known, f"what comes {seconds} s later")
    finally:
        run("stop", root=tmp_path)

    assert seen == [False] * 5


def answers(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_everything(tmp_path: Path, number: int) -> None:
    client = [sys.executable, "-c", CLIENT, LONG]
    process = subprocess.Popen(
        [*COMMAND, "exec", "--root", str(tmp_path), "--boot-seconds", "0.04", "--", *client],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    eventually(lambda: len(sleepers()) >= 2, "the instance's processes")
    groups = control_groups(tmp_path)
    # As a terminal does it: Ctrl-C reaches the whole group.
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    code = process.wait(30)
    process.stdout.close()

    assert code == 128 + number
    assert not (tmp_path / "instances").exists()
    assert sleepers() == []
    assert [group for group in groups if group.exists()] == []


def doomed(root: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), LONG],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    eventually(lambda: len(sleepers()) >= 2, "the instance's processes")
    return process


def control_groups(root: Path) -> list[Path]:
    """Those the running emulator has written down for whoever cleans up after it."""
    state = json.loads((root / "holder.json").read_text())
    return [Path(group) for group in state["groups"]]


def test_a_killed_emulator_leaves_nothing_running(tmp_path: Path) -> None:
    process = doomed(tmp_path)
    groups = control_groups(tmp_path)
    process.kill()
    process.communicate(timeout=30)

    eventually(lambda: not sleepers(), "its instances are gone")
    eventually(lambda: not (tmp_path / "instances").exists(), "their directories are gone")
    eventually(lambda: not any(group.exists() for group in groups), "their control groups too")
    assert list((tmp_path / "buckets").glob("kept"))


def test_the_next_start_ends_what_a_killed_emulator_and_watchdog_left(tmp_path: Path) -> None:
    process = doomed(tmp_path)
    watchdogs = subprocess.run(
        ["pgrep", "-f", f"leftovers.py .*{tmp_path}"], capture_output=True, text=True, check=True
    ).stdout.split()
    for pid in watchdogs:
        os.kill(int(pid), signal.SIGKILL)
    groups = control_groups(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    left = len(sleepers())

    with Emulator(tmp_path) as emulator:
        assert emulator.instances() == []
        assert sleepers() == []
        assert [group for group in groups if group.exists()] == []
        names = requests.get(f"{emulator.storage_url}/storage/v1/b", timeout=30).json()["items"]

    assert left >= 2
    assert [bucket["name"] for bucket in names] == ["kept"]


def test_a_root_has_one_emulator_at_a_time(tmp_path: Path) -> None:
    with Emulator(tmp_path), pytest.raises(RootInUse, match="already"), Emulator(tmp_path):
        pass


def test_a_stop_leaves_neither_processes_nor_directories(tmp_path: Path) -> None:
    with Emulator(boot_seconds=0.04) as emulator:
        root = emulator.root
        api = Api(emulator.compute_url, emulator.project)
        api.create(startup=f"trap '' TERM; setsid sleep {LONG} & sleep {LONG}")
        mark = emulator.mark

    assert not root.exists()
    assert leftovers.marked(mark) == []


def test_importing_the_command_is_light() -> None:
    program = "import sys, gce_backend.emulator.command; print('aiohttp' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    assert output.strip() == "False"
