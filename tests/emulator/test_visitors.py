"""Web pages are not answered, whichever way their requests come; programs are."""

from __future__ import annotations

import json

import pytest
import requests

from gce_backend.emulator import Emulator
from gce_backend.emulator.visitors import is_foreign

from .conftest import Api, body
from .test_metadata import Guest, guest

__all__ = ["guest"]  # the fixture

PAGES = [
    {"Origin": "https://evil.example"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "null"},
    {"Host": "evil.example:8080"},
    {"Host": "localhost.evil.example"},
    {"Host": "192.168.1.5"},
    {"Host": "[::1"},
    {"Host": "localhost:80", "Origin": "https://evil.example"},
]
PROGRAMS = [
    {},
    {"Host": "localhost:4443"},
    {"Host": "127.0.0.1:4443"},
    {"Host": "127.1.2.3"},
    {"Host": "[::1]:80"},
    {"Host": "metadata.google.internal"},
    {"Host": "metadata.google.internal:80"},
    {"Host": "169.254.169.254"},
    {"Host": "127.0.0.1:4443", "Origin": "http://localhost:5000"},
]


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [*((headers, True) for headers in PAGES), *((headers, False) for headers in PROGRAMS)],
)
def test_a_page_is_told_from_a_program(headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign(headers) is foreign


@pytest.mark.parametrize("headers", PAGES[0:4:3])
def test_a_page_changes_nothing_and_reads_nothing(
    emulator: Emulator, api: Api, headers: dict[str, str]
) -> None:
    def status(method: str, url: str, **data: str) -> int:
        sent = {"Content-Type": "text/plain;charset=UTF-8", **headers}
        return requests.request(method, url, headers=sent, timeout=30, **data).status_code

    root = emulator.compute_url.removesuffix("/compute/v1/")
    fault = json.dumps({"kind": "unavailable"})
    bucket = f"{emulator.storage_url}/storage/v1/b/bucket"
    found = [
        status("POST", f"{api.zone}/instances", data=json.dumps(body("vm"))),
        status("POST", f"{root}/_emulator/faults", data=fault),
        status("POST", f"{root}/batch/compute/v1", data=""),
        status("GET", bucket),
        status("POST", f"{bucket}/o?name=x", data="x"),
    ]

    assert found == [403] * len(found)
    assert emulator.instances() == []
    assert requests.get(f"{root}/_emulator/faults", timeout=30).json() == []


def test_an_instances_metadata_are_no_pages_business(guest: Guest) -> None:
    flavor = {"Metadata-Flavor": "Google"}
    url = guest.base + "instance/name"
    by_name = requests.get(url, headers={**flavor, "Host": "metadata.google.internal"}, timeout=30)
    rebound = requests.get(url, headers={**flavor, "Host": "evil.example"}, timeout=30)

    assert (by_name.text, rebound.status_code) == ("vm", 403)
