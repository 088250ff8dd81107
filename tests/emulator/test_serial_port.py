"""The serial port is a buffer of 1 MiB, read from any place or from its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from gce_backend.emulator import Emulator

from .conftest import Api, eventually

KEPT = 1024 * 1024
SIZE = 3_000_000


@pytest.fixture
def written(emulator: Emulator, api: Api) -> bytes:
    """What the port has been written."""
    api.create(startup="true")
    eventually(lambda: "exit status" in api.serial(), "the script, after which nothing writes")
    file = next(Path(emulator.instance_directory("vm")).glob("serial*"))
    text = b"".join(b"%06d\n" % number for number in range(SIZE // 7))
    file.write_bytes(text)
    return text


def read(api: Api, **params: str) -> requests.Response:
    return requests.get(f"{api.zone}/instances/vm/serialPort", params=params, timeout=30)


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("", -KEPT),
        ("0", -KEPT),
        ("10", -KEPT),
        (str(SIZE - 100), SIZE - 100),
        ("-20", -20),
        ("-9999999", -KEPT),
        ("9999999", SIZE),
    ],
)
def test_output_begins_where_asked_or_with_the_oldest_kept(
    api: Api, written: bytes, start: str, first: int
) -> None:
    answer = read(api, **({"start": start} if start else {})).json()
    expected = first if first >= 0 else len(written) + first
    expected = min(expected, len(written))

    assert answer["start"] == str(expected)
    assert answer["contents"] == written[expected:].decode()
    assert answer["next"] == str(len(written))


def test_other_ports_are_empty(api: Api, written: bytes) -> None:
    assert read(api, port="2", start="-5").json()["contents"] == ""


@pytest.mark.parametrize("start", ["abc", "1.5", "²", "9" * 30])
def test_a_start_that_is_no_number_is_a_400(api: Api, written: bytes, start: str) -> None:
    answer = read(api, start=start)

    assert answer.status_code == 400
    assert "'start'" in answer.json()["error"]["message"]
