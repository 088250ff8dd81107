"""What is kept on this machine for SSH: readable by its owner, and gone with the instance."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import paramiko
import pytest

from gce_backend.errors import SshError
from gce_backend.ssh_state import SshState, metadata_line


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_the_metadata_line_is_the_one_googles_agent_lets_expire() -> None:
    expected = (
        "mlflow:ssh-ed25519 AAAA google-ssh "
        '{"userName":"mlflow","expireOn":"2026-12-01T00:00:00+0000"}'
    )

    assert expected == metadata_line("ssh-ed25519 AAAA comment", 1_796_083_200)


def test_only_the_owner_reads_a_key_and_only_its_public_half_leaves() -> None:
    state = SshState("run")
    line = state.make_key(time.time() + 60)

    private = paramiko.Ed25519Key.from_private_key_file(str(state.key_file))
    assert private.get_base64() in line and "PRIVATE" not in line
    assert stat.S_IMODE(state.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.directory.stat().st_mode) == 0o700


def test_every_key_is_a_new_one() -> None:
    state = SshState("run")

    assert state.make_key(time.time() + 60) != state.make_key(time.time() + 60)


def test_the_first_pin_stays() -> None:
    state = SshState("run")
    assert state.pinned("1") is None

    assert state.pin("1", {"ssh-ed25519": "first"}) == {"ssh-ed25519": "first"}
    assert state.pin("1", {"ssh-ed25519": "second"}) == {"ssh-ed25519": "first"}
    assert SshState("run").pinned("1") == {"ssh-ed25519": "first"}
    assert state.pinned("2") is None


def test_nothing_is_left_of_an_instance_that_is_gone() -> None:
    state = SshState("run")
    state.make_key(time.time() + 60)
    state.pin("1", {"ssh-ed25519": "first"})

    state.forget()

    assert not state.directory.exists()
    state.forget()  # a second time is no error


def test_what_expired_is_removed_when_the_next_key_is_made() -> None:
    SshState("old").make_key(time.time() - 1)
    SshState("new").make_key(time.time() + 60)

    assert not SshState("old").directory.exists()
    assert SshState("new").has_key


def test_a_directory_that_cannot_be_written_is_named(state_home: Path) -> None:
    state_home.write_text("a file")

    with pytest.raises(SshError, match=r"cannot keep an SSH key in .*XDG_STATE_HOME"):
        SshState("run").make_key(time.time() + 60)
