"""The journal on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gce_backend.agent.journal import Journal

REPOSITORY = Path(__file__).resolve().parents[2]


def test_records_are_numbered_on_from_earlier_attempts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", last_seq=41)
    journal.append("runs/set-tag", "POST", {"key": "a"})
    journal.append("runs/create", "POST", {}, provisional_id="f" * 32)
    journal.close()

    records = list(Journal(tmp_path / "journal", last_seq=41).records())
    assert [record["seq"] for record in records] == [42, 43]
    assert records[0]["path"] == "runs/set-tag" and records[0]["body"] == {"key": "a"}
    assert records[1]["provisional_id"] == "f" * 32


@pytest.mark.parametrize("torn", [b'{"seq": 3, "at"', b"x" * 200_000, b"{"])
def test_a_line_cut_short_by_a_crash_is_removed(tmp_path: Path, torn: bytes) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append("a", "POST", {})
    journal.append("b", "POST", {})
    journal.close()
    with (tmp_path / "journal").open("ab") as file:
        file.write(torn)

    again = Journal(tmp_path / "journal")
    again.append("c", "POST", {})
    assert [(record["seq"], record["path"]) for record in again.records()] == [
        (1, "a"),
        (2, "b"),
        (3, "c"),
    ]
    again.close()


def test_what_is_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from gce_backend.agent.journal import Journal\n"
        "from pathlib import Path\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "while True:\n"
        "    journal.append('runs/log-metric', 'POST', {'value': 1.0})\n"
        "    print(journal.last_seq, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "journal"), str(REPOSITORY)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == 500:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()

    journal = Journal(tmp_path / "journal")
    assert journal.last_seq >= acknowledged
    assert [record["seq"] for record in journal.records()] == list(range(1, journal.last_seq + 1))
    journal.close()


def test_a_full_disk_acknowledges_nothing_and_leaves_the_file_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append("a", "POST", {})
    size = (tmp_path / "journal").stat().st_size
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"journal|large"):
            journal.append("b", "POST", {"value": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert journal.last_seq == 1
    journal.append("c", "POST", {})
    lines = (tmp_path / "journal").read_bytes().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["a", "c"]
    journal.close()
