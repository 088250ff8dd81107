"""Who has a root: one emulator at a time, whoever comes at the same moment."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gce_backend.emulator import RootInUse, roots

from .conftest import eventually
from .test_command import COMMAND, run


def test_a_claim_in_the_middle_of_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, messages = roots.clean, []

    def meanwhile(root: Path) -> None:
        monkeypatch.setattr(roots, "clean", clean)
        with pytest.raises(RootInUse) as caught:
            roots.claim(root)
        messages.append(str(caught.value))
        clean(root)

    monkeypatch.setattr(roots, "clean", meanwhile)
    monkeypatch.setattr(roots, "PATIENCE_SECONDS", 0.0)
    claim = roots.claim(tmp_path)
    found = roots.holder(tmp_path)
    roots.release(tmp_path)
    claim.let_go()

    assert "starts or ends" in messages[0]
    assert found == claim.holder
    roots.claim(tmp_path).let_go()


@pytest.mark.flow
def test_a_watchdog_keeps_the_root_until_it_has_cleaned_up(tmp_path: Path) -> None:
    """Else what it removes could be the next emulator's."""
    program = (
        "import sys, time; from pathlib import Path; from gce_backend.emulator import roots\n"
        "root = Path(sys.argv[1]); claim = roots.claim(root)\n"
        "watchdog = roots.Watchdog(claim, [root / 'instances'])\n"
        "print(watchdog._process.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    watchdog = int(process.stdout.readline())
    os.kill(watchdog, signal.SIGSTOP)
    process.kill()
    process.communicate(timeout=30)
    with (tmp_path / "lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(watchdog, signal.SIGCONT)

        roots.claim(tmp_path).let_go()


@pytest.mark.flow
def test_of_two_starts_at_once_one_succeeds_and_the_other_says_why_not(tmp_path: Path) -> None:
    command = [*COMMAND, "start", "--root", str(tmp_path)]
    starts = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [start.communicate(timeout=90) for start in starts]
    codes = [start.returncode for start in starts]
    stopped = run("stop", root=tmp_path)

    assert sorted(codes) == [0, 1], texts
    assert "an emulator runs" in texts[codes.index(1)][1]
    assert stopped.returncode == 0, stopped.stderr
    assert emulators(tmp_path) == []


@pytest.mark.flow
def test_ctrl_c_during_a_start_leaves_no_emulator(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that the start takes its time
        start = subprocess.Popen([*COMMAND, "start", "--root", str(tmp_path)])
        eventually(lambda: emulators(tmp_path), "the emulator's process")
        start.send_signal(signal.SIGINT)
    code = start.wait(90)

    assert code == 1
    assert emulators(tmp_path) == []


def emulators(root: Path) -> list[str]:
    """Those that run on ``root`` in the background."""
    pattern = f"start --foreground --root {root} "
    return subprocess.run(
        ["pgrep", "-f", "--", pattern], capture_output=True, text=True, check=False
    ).stdout.split()
