"""The trainer's process: whom it runs as, and how its end is known."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gce_backend.agent.log import PREFIX, RunLog
from gce_backend.agent.process import Launch, Trainer
from gce_backend.agent.stop import Stop
from gce_backend.agent.users import Account, trainer_account

from .cloud import wait_for

pytestmark = pytest.mark.flow  # real processes and servers

MYSELF = Account(None, None, "me", "/")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users can reach."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


def launch(root: Path, command: str, account: Account = MYSELF) -> Launch:
    (root / "work").mkdir(exist_ok=True)
    return Launch(command, root / "work", dict(os.environ), account)


def run(root: Path, command: str, account: Account = MYSELF) -> tuple[int, str]:
    log = RunLog(root / "log")
    trainer = Trainer(root / "notes", log)
    trainer.start(launch(root, command, account))
    code = trainer.wait(Stop(), lambda: 1.0)
    log.close()
    return code, (root / "log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a trainer as somebody else")
def test_the_trainer_runs_as_the_account_and_owns_its_directory(place: Path) -> None:
    entry = pwd.getpwnam("nobody")
    account = Account(entry.pw_uid, entry.pw_gid, "nobody", "/")
    (place / "work").mkdir()
    (place / "work" / "file").write_text("x")
    (place / "work" / "link").symlink_to("/etc/passwd")
    account.own(place / "work")

    code, log = run(place, "id -un; echo y > file; touch new", account)

    assert (code, log) == (0, "nobody\n")
    assert (place / "work" / "new").stat().st_uid == entry.pw_uid
    assert Path("/etc/passwd").stat().st_uid == 0


def test_without_an_account_it_is_said_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "useradd").write_text("#!/bin/bash\necho 'read-only image' >&2; exit 1\n")
    (tmp_path / "useradd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said: list[str] = []

    account = trainer_account(said.append)

    assert account.uid is None
    assert "like the agent:" in said[0]


def test_a_trainer_that_is_killed_alone_is_told_from_a_normal_end(place: Path) -> None:
    assert run(place, "kill -KILL $$")[0] == 137
    assert run(place, "exit 7")[0] == 7


def test_what_a_trainer_leaves_running_ends_with_it(place: Path) -> None:
    code, log = run(place, "sleep 60 & echo $!")

    assert code == 0
    wait_for(lambda: not Path(f"/proc/{int(log)}").exists(), "the child is gone")


def test_a_killed_shell_counts_as_killed(place: Path) -> None:
    log = RunLog(place / "log")
    trainer = Trainer(place / "notes", log)
    trainer.start(launch(place, "sleep 60"))
    found = Trainer(place / "notes", log)
    assert found.find()
    pid = int((place / "notes" / "process").read_text().splitlines()[1].split()[0])
    os.killpg(pid, signal.SIGKILL)

    assert trainer.wait(Stop(), lambda: 1.0) == 137
    assert Trainer(place / "notes", log).find() is False
    log.close()


def test_who_is_left_alone_is_told_to_end_as_well(place: Path) -> None:
    """A daemon in a session of its own, whose parent is gone: not heard of it costs the grace."""
    daemon = "trap 'touch told; exit' TERM; touch up; while :; do sleep 0.1; done"
    log, stop = RunLog(place / "log"), Stop()
    trainer = Trainer(place / "notes", log)
    trainer.start(launch(place, f'setsid bash -c "{daemon}" & sleep 60'))
    wait_for((place / "work" / "up").exists, "the daemon is there")
    stop.set("cancelled")

    trainer.wait(stop, lambda: 60.0)

    assert (place / "work" / "told").exists()
    assert "SIGKILL in" in (place / "log").read_text()
    assert "still runs" not in (place / "log").read_text()
    log.close()


@pytest.mark.parametrize("told", ["", "cancelled"])
def test_an_end_by_the_machines_shutdown_is_told_from_one_that_the_agent_asked_for(
    place: Path, told: str
) -> None:
    log = RunLog(place / "log")
    trainer = Trainer(place / "notes", log)
    trainer.start(launch(place, "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done"))
    wait_for(lambda: "ready" in (place / "log").read_text(), "the trainer is ready")
    if told:
        (place / "notes" / "told").write_text(told)
    os.killpg(int((place / "notes" / "process").read_text().split()[1]), signal.SIGTERM)
    assert trainer.wait(Stop(), lambda: 1.0) == 0
    assert Trainer(place / "notes", log).find(), "the machine has not been booted since"

    (place / "notes" / "intent").write_text("the boot before this one")

    assert Trainer(place / "notes", log).find() is bool(told)
    log.close()


def test_the_agents_lines_begin_on_a_line_of_their_own(place: Path) -> None:
    run(place, "printf 'no newline'")
    log = RunLog(place / "log")
    log.say("first")
    log.say("second")

    assert (place / "log").read_text() == f"no newline\n{PREFIX}first\n{PREFIX}second\n"
    assert log.tail(2) == f"{PREFIX}first\n{PREFIX}second"
    log.close()
