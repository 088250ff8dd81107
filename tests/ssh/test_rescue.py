"""Files straight off an instance: proven, resumable, and nothing outside of the directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gce_backend import rescue as rescuing
from gce_backend.errors import SshError
from gce_backend.rescue import rescue

from .conftest import Guest

WEIGHTS = os.urandom(3_000_000)
OBJECT = "mlflow-gce/experiments/e/run/artifacts/model.pt"


@pytest.fixture
def kept(guest: Guest) -> Guest:
    """An instance with what a training left on it."""
    guest.insert()
    guest.access().connect_within(30, lambda _: None).close()
    root = guest.agent_directory
    files = {
        "run.log": b"\r 10%\xff\n",
        "run.log.pieces": b"{}",
        "work/checkpoints/last.pt": WEIGHTS,
        "work/ünïcode 日本\n": b"odd",
        "work/empty": b"",
        "spool/00000001": b"old",
        "spool/00000002": WEIGHTS[::-1],
        "spool/00000003": b"evil",
        "environment/venv/bin/python": b"large and worthless",
        "state.json": b'{"token": "of the relay"}',
        "agent.pyz": b"program",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "work/link").symlink_to("/etc/passwd")
    index = [
        {"number": 1, "bucket": "b", "name": OBJECT, "deleted": False},
        {"number": 2, "bucket": "b", "name": OBJECT, "deleted": False},
        {"number": 3, "bucket": "b", "name": "../../../evil", "deleted": False},
    ]
    lines = "\n".join(json.dumps(entry) for entry in index)
    (root / "spool/index.jsonl").write_text(lines + '\n{"torn')
    return guest


EXPECTED = {
    "run.log": b"\r 10%\xff\n",
    "work/checkpoints/last.pt": WEIGHTS,
    "work/ünïcode 日本\n": b"odd",
    "work/empty": b"",
    f"bucket/{OBJECT}": WEIGHTS[::-1],
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "rescued"


def found(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_everything_that_counts_comes_and_stays_inside(kept: Guest, target: Path) -> None:
    with kept.access().connect() as connection:
        done = rescue(connection, target)

    assert found(target) == EXPECTED
    assert (done.files, done.transferred) == (5, sum(map(len, EXPECTED.values())))
    assert not (target.parent / "evil").exists()


def test_a_second_rescue_transfers_only_what_is_new(kept: Guest, target: Path) -> None:
    with kept.access().connect() as connection:
        rescue(connection, target)
        kept.log.write_bytes(EXPECTED["run.log"] + b"more\n")

        again = rescue(connection, target)

    assert again.transferred == len(b"more\n")
    assert found(target) == {**EXPECTED, "run.log": EXPECTED["run.log"] + b"more\n"}


def test_a_half_and_a_wrong_file_are_made_whole(kept: Guest, target: Path) -> None:
    """A part that an interrupted rescue left, and a file whose bytes are not the instance's."""
    (target / "work/checkpoints").mkdir(parents=True)
    (target / "work/checkpoints/last.pt.part").write_bytes(WEIGHTS[:2_000_000])
    (target / "run.log").write_bytes(b"something else of a greater length")
    with kept.access().connect() as connection:
        done = rescue(connection, target)

    assert found(target) == EXPECTED
    assert done.transferred == sum(map(len, EXPECTED.values())) - 2_000_000


def test_a_rescue_that_broke_off_goes_on(kept: Guest, target: Path) -> None:
    with kept.access().connect() as connection:
        seen: list[str] = []

        def cut(name: str) -> None:
            seen.append(name)
            connection.close()

        with pytest.raises(SshError):
            rescue(connection, target, cut)
    assert len(seen) < len(EXPECTED)
    with kept.access().connect() as connection:
        rescue(connection, target)

    assert found(target) == EXPECTED


def test_a_file_that_cannot_be_had_is_named_and_spares_the_others(
    kept: Guest, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing = rescuing.LIST + 'os.unlink(os.path.join(root, "work/empty"))\n'
    monkeypatch.setattr(rescuing, "LIST", vanishing)
    with (
        kept.access().connect() as connection,
        pytest.raises(SshError, match=r"1 of 5 files .*could not be rescued(.|\n)*work/empty"),
    ):
        rescue(connection, target)

    expected = {name: data for name, data in EXPECTED.items() if name != "work/empty"}
    assert {n: d for n, d in found(target).items() if not n.endswith(".part")} == expected


def test_an_instance_without_a_run_is_told(guest: Guest, target: Path) -> None:
    guest.insert()
    with (
        guest.access().connect_within(30, lambda _: None) as connection,
        pytest.raises(SshError, match="has no files of a run"),
    ):
        rescue(connection, target)
