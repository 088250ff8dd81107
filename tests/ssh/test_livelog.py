"""The log over SSH and from the bucket: every byte once, whatever breaks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gce_backend import ssh, ssh_frames
from gce_backend.console import Console
from gce_backend.emulator import Fault
from gce_backend.errors import AuthenticationRefused, SshUnavailable
from gce_backend.livelog import LiveLog
from gce_backend.ssh_access import SshAccess
from gce_backend.ssh_route import Route

from .conftest import ZONE, Guest, eventually
from .flaky import flaky_way

#: A progress bar with colours, a line that is no UTF-8, one that never ends.
ODD = b"\r 10%|\x1b[32m#\x1b[0m |\r100%|##|\n\xff\xfe\x80 not text\nno newline yet \r"


class Screen:
    """A console, and the bytes that it got."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._err = io.StringIO()
        text = io.TextIOWrapper(self._out, encoding="utf-8", write_through=True)
        self.console = Console(out=text, err=self._err)

    @property
    def bytes(self) -> bytes:
        return self._out.getvalue()

    @property
    def warnings(self) -> str:
        return self._err.getvalue()


@dataclass
class Following:
    """A live log that is looked after as the follower does it."""

    guest: Guest
    screen: Screen
    log: LiveLog

    def until(self, check: Callable[[], Any], what: str, seconds: float = 30) -> Any:
        def look() -> Any:
            self.log.show_new()
            return check()

        return eventually(look, what, seconds)

    def until_shown(self, expected: bytes, seconds: float = 30) -> None:
        self.until(
            lambda: self.screen.bytes == expected, f"{len(expected)} bytes are shown", seconds
        )


@contextmanager
def following(guest: Guest, access: SshAccess | None) -> Iterator[Following]:
    screen = Screen()
    with LiveLog(guest.submission, guest.storage, access, screen.console) as log:
        yield Following(guest, screen, log)


def write(guest: Guest, data: bytes) -> None:
    with guest.log.open("ab") as file:
        file.write(data)


def put_pieces(guest: Guest, *pieces: bytes, first: int = 1) -> None:
    for number, data in enumerate(pieces, first):
        guest.storage.put(guest.submission.paths.log(number), data)


@pytest.fixture
def up(guest: Guest) -> Guest:
    """An instance that has booted."""
    guest.insert()
    guest.access().connect_within(30, lambda _: None).close()
    return guest


def test_lines_are_shown_as_they_are_printed(up: Guest) -> None:
    with following(up, up.access()) as live:
        write(up, b"first\n")
        live.until_shown(b"first\n")
        for number in range(5):
            write(up, b"%d\r" % number)  # the line is not over, and is shown nevertheless
            eventually(lambda n=number: live.screen.bytes.endswith(b"%d\r" % n), "the next")  # type: ignore[misc]
    assert live.screen.warnings == ""


def test_odd_bytes_come_as_they_are_and_from_the_beginning(up: Guest) -> None:
    write(up, ODD)
    with following(up, up.access()) as live:
        live.until_shown(ODD)


def test_a_log_that_begins_after_the_connection(up: Guest) -> None:
    with following(up, up.access()) as live:
        live.until(lambda: live.log._is_live, "SSH stands before there is a log")
        write(up, b"late\n")
        live.until_shown(b"late\n")


def test_without_ssh_the_log_comes_from_the_bucket_and_nothing_is_said(guest: Guest) -> None:
    put_pieces(guest, b"one\n", ODD)
    with following(guest, None) as live:
        live.log.show_new()
        put_pieces(guest, b"three\n", first=3)
        live.log.finish()

    assert live.screen.bytes == b"one\n" + ODD + b"three\n"
    assert live.screen.warnings == ""


def test_where_ssh_cannot_be_had_it_is_said_once(guest: Guest) -> None:
    put_pieces(guest, b"one\n")
    with following(guest, guest.access()) as live:  # no key on this machine
        live.until(lambda: live.screen.warnings, "it is said")
        live.until_shown(b"one\n")
        put_pieces(guest, b"two\n", first=2)
        live.until_shown(b"one\ntwo\n")

    assert live.screen.warnings.count("The log comes from the bucket") == 1
    assert "no SSH key of run" in live.screen.warnings


def is_refused(guest: Guest) -> bool:
    try:
        guest.access().connect().close()
    except AuthenticationRefused:
        return True
    except SshUnavailable:
        return False
    raise AssertionError("it let us in")


def test_a_key_that_is_entered_late_is_waited_for(guest: Guest) -> None:
    line = guest.state.make_key(guest.submission.deadline)
    guest.insert(key="somebody:ssh-ed25519 AAAA")
    write(guest, b"one\n")
    with following(guest, guest.access()) as live:
        eventually(lambda: is_refused(guest), "it answers, and refuses")
        guest.compute.set_metadata(ZONE, guest.submission.instance, "ssh-keys", line)
        live.until_shown(b"one\n")

    assert live.screen.warnings == ""


def test_the_bucket_goes_first_and_ssh_goes_on_where_it_stood(guest: Guest) -> None:
    put_pieces(guest, b"one\n", b"tw")
    with following(guest, guest.access()) as live:
        live.until_shown(b"one\ntw")
    whole = b"one\ntwo\nthree\n"
    guest.insert()
    write(guest, whole)
    with following(guest, guest.access()) as live:
        live.log.show_new()
        live.until_shown(whole)


def test_a_further_attempt_goes_on_where_the_first_ended(up: Guest) -> None:
    """Its log is a file of its own; the bucket's pieces, and what is shown, go on."""
    write(up, b"first attempt\n")
    put_pieces(up, b"first ", b"attempt\n")
    before = b"first attempt\nsaved at the last moment\n"
    second = replace(up.submission, attempt=2)
    with following(up, up.access()) as live:
        live.until_shown(b"first attempt\n")
        live.log.finish()
        put_pieces(up, b"saved at the last moment\n", first=3)
        up.log.write_bytes(b"second attempt\n")  # stands for the next instance
        live.log.go_on(second, up.access())
        live.until(lambda: live.screen.bytes == before, "what the first left")
        put_pieces(up, b"second attempt\n", first=4)
        up.log.with_name("run.log.pieces").write_text('{"first": 4, "ends": [15]}')
        live.until(lambda: live.log._is_live, "SSH stands again")
        write(up, b"and on\n")
        live.until_shown(before + b"second attempt\nand on\n")
        live.log.finish()

    assert live.screen.bytes == before + b"second attempt\nand on\n"
    assert live.screen.warnings == ""


def test_what_ssh_has_shown_is_not_fetched_again(up: Guest) -> None:
    write(up, b"a" * 1000 + b"b" * 500)
    with following(up, up.access()) as live:
        live.until_shown(b"a" * 1000 + b"b" * 500)
        put_pieces(up, b"a" * 400, b"a" * 600, b"b" * 499, b"bcc")
        before = len(up.emulator.calls)
        live.log.finish()
        calls = up.emulator.calls[before:]

    assert live.screen.bytes == b"a" * 1000 + b"b" * 500 + b"cc"
    fetched = [c.path for c in calls if "/log/" in c.path and c.status == 200]
    assert [path.rpartition("/")[2] for path in fetched] == ["000004"]


def test_a_broken_connection_leaves_no_gap_and_no_repeat(up: Guest) -> None:
    expected = b""
    with following(up, up.access()) as live:
        for number in range(6):
            expected += b"line %d\n" % number
            write(up, b"line %d\n" % number)
            if number % 2:
                up.emulator.inject(
                    Fault("network_cut", resource=up.submission.instance, times=None)
                )
                write(up, b"dark %d\n" % number)
                expected += b"dark %d\n" % number
                eventually(lambda: not live.log._is_live, "SSH is lost")
                up.emulator.clear_faults()
            live.until_shown(expected)
    assert live.screen.warnings == ""  # nothing that lasted


@pytest.fixture
def quick_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_frames, "_SILENCE_SECONDS", 1.0)
    monkeypatch.setattr("gce_backend.livelog.ALIVE_SECONDS", 0.2)
    monkeypatch.setattr(ssh, "_HANDSHAKE_SECONDS", 2.0)


@pytest.mark.usefixtures("quick_to_notice")
def test_a_network_that_goes_silent_leaves_no_gap_and_no_repeat(up: Guest) -> None:
    silence(up, seconds=3)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_network_that_is_silent_for_a_minute(up: Guest) -> None:
    silence(up, seconds=60)


def silence(up: Guest, seconds: float) -> None:
    """The instance prints on; the bucket is as far away as SSH is."""
    address = up.resource()["networkInterfaces"][0]["networkIP"]
    printing = threading.Event()
    printed: list[bytes] = []

    def trainer() -> None:
        while not printing.wait(0.05):
            printed.append(b"line %d\n" % len(printed))
            write(up, printed[-1])

    with flaky_way((address, up.route.port)) as way:
        thread = threading.Thread(target=trainer)
        thread.start()
        try:
            with following(up, up.access(Diverted(way.port))) as live:
                live.until(lambda: len(live.screen.bytes) > 50, "the first lines")
                way.passing.clear()
                time.sleep(seconds)
                way.passing.set()
                live.until(lambda: way.connections > 1, "SSH comes back", 60)
                printing.set()
                thread.join()
                live.until_shown(b"".join(printed))
        finally:
            printing.set()
            thread.join()


class Diverted(Route):
    """To the same host by another port of this machine."""

    def open(self, via: str, project: str, zone: str, instance: dict[str, Any]) -> Any:
        here = {**instance, "networkInterfaces": [{"networkIP": "127.0.0.1"}]}
        return super().open("internal", project, zone, here)


CLIENT = """
import json, resource, sys, time
from dataclasses import replace
from gce_backend.agent.paths import RunPaths
from gce_backend.compute import Compute
from gce_backend.console import Console
from gce_backend.livelog import LiveLog
from gce_backend.ssh_access import SshAccess
from gce_backend.ssh_route import Route
from gce_backend.storage import Storage
from gce_backend.submission import Submission

fields = json.loads(sys.argv[1])
fields["paths"] = RunPaths("mlflow-gce", fields["run_id"])
submission = Submission(**fields)
compute = Compute(submission.project, endpoint=sys.argv[2])
storage = Storage("bucket", project=submission.project)
access = SshAccess(submission, compute, storage, route=Route.of(emulated=True))
access.connect().close()  # everything is imported
before = resource.getrusage(resource.RUSAGE_SELF)
end, size = time.monotonic() + 120, int(sys.argv[3])
with LiveLog(submission, storage, access, Console()) as log:
    while log._shown < size and time.monotonic() < end:
        time.sleep(0.05)
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"cpu": cpu, "mb": (after.ru_maxrss - before.ru_maxrss) / 1024}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [(100_000, 0.0), pytest.param(100_000, 10.0, marks=pytest.mark.long)],
    ids=["at once", "in ten seconds"],
)
def test_a_flood_a_huge_line_and_odd_bytes_are_all_shown(
    up: Guest, lines: int, seconds: float, tmp_path: Path
) -> None:
    expected = b"".join(b"line %06d of a training\n" % number for number in range(lines))
    whole = expected + ODD + b"x" * 10_000_000 + b"\n" + ODD
    output = tmp_path / "output"
    with output.open("wb") as sink:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, up.as_json(), up.emulator.compute_url, str(len(whole))],
            env={**os.environ, **up.emulator.env},
            stdout=sink,
            stderr=subprocess.PIPE,
        )
        for start in range(0, len(whole), max(1, len(whole) // 100)):
            write(up, whole[start : start + max(1, len(whole) // 100)])
            time.sleep(seconds / 100)
        _, report = client.communicate(timeout=150)

    assert output.read_bytes() == whole, report
    used = json.loads(report.splitlines()[-1])
    print(used)
    assert used["mb"] < 64
    if seconds:
        assert used["cpu"] < seconds
