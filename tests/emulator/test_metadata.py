"""The metadata server, by plain HTTP and by google-auth."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from gce_backend.emulator import Emulator
from gce_backend.emulator.guest.keys import authorized_keys
from gce_backend.emulator.tokens import CLOUD_PLATFORM

from .conftest import Api, eventually

FLAVOR = {"Metadata-Flavor": "Google"}


class Guest:
    """The metadata server of an instance, asked from outside."""

    def __init__(self, instance: dict[str, Any], script: Path) -> None:
        text = (script / "bin" / "poweroff").read_text()
        port = text.partition("/dev/tcp/")[2].split()[0].partition("/")[2]
        address = instance["networkInterfaces"][0]["networkIP"]
        self.host = f"{address}:{port}"
        self.base = f"http://{self.host}/computeMetadata/v1/"

    def get(self, path: str, **params: str) -> requests.Response:
        return requests.get(self.base + path, headers=FLAVOR, params=params, timeout=30)


@pytest.fixture
def guest(emulator: Emulator, api: Api) -> Guest:
    items = [{"key": "enable-guest-attributes", "value": "TRUE"}, {"key": "a", "value": "1"}]
    instance = api.create(metadata={"items": items}, serviceAccounts=[{"email": "default"}])
    return Guest(instance, emulator.instance_directory("vm"))


@pytest.mark.parametrize("value", ["yes", "Y", "1", "true"])
def test_yes_is_true_too(emulator: Emulator, api: Api, value: str) -> None:
    items = [{"key": "enable-guest-attributes", "value": value}]
    instance = api.create(metadata={"items": items})
    url = Guest(instance, emulator.instance_directory("vm")).base

    written = requests.put(
        f"{url}instance/guest-attributes/a/b", headers=FLAVOR, data="c", timeout=30
    )

    assert written.status_code == 200


def test_tags_are_json(emulator: Emulator, api: Api) -> None:
    tagged = Guest(api.create(tags={"items": ["web", "blue"]}), emulator.instance_directory("vm"))

    assert tagged.get("instance/tags").json() == ["web", "blue"]
    assert tagged.get("instance/tags", alt="text").text == "web\nblue\n"
    assert tagged.get("instance/", recursive="true").json()["tags"] == ["web", "blue"]


def test_recursive_text_is_a_line_for_each_value(guest: Guest) -> None:
    text = guest.get("instance/", recursive="true", alt="text").text

    assert "attributes/a 1\n" in text
    assert "disks/0/device-name persistent-disk-0\n" in text
    assert "token" not in text


def test_numbered_directories_are_lists_in_json(guest: Guest) -> None:
    found = guest.get("instance/", recursive="true").json()

    assert [disk["deviceName"] for disk in found["disks"]] == ["persistent-disk-0"]
    assert found["networkInterfaces"][0]["accessConfigs"][0]["type"] == "ONE_TO_ONE_NAT"
    assert guest.get("instance/disks/").text == "0/\n"
    assert guest.get("instance/name", alt="json").json() == "vm"


def test_a_guest_attribute_can_be_removed_and_is_no_file(guest: Guest) -> None:
    url = guest.base + "instance/guest-attributes/train/epoch"

    def call(method: str, data: str = "") -> int:
        return requests.request(method, url, headers=FLAVOR, data=data, timeout=30).status_code

    assert [call("PUT", "1"), call("DELETE"), call("GET"), call("DELETE")] == [200, 200, 404, 404]
    assert call("PUT", "x" * (256 * 1024 + 1)) == 413


def test_without_the_header_it_is_a_403(guest: Guest) -> None:
    answer = requests.get(guest.base + "instance/name", timeout=30)

    assert answer.status_code == 403
    assert answer.headers["Metadata-Flavor"] == "Google"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("instance/name", "vm"),
        ("instance/zone", "projects/123456789012/zones/europe-west1-b"),
        ("instance/preempted", "FALSE"),
        ("instance/attributes/a", "1"),
        ("project/project-id", "emulator-project"),
        ("instance/attributes/", "enable-guest-attributes\na\n"),
    ],
)
def test_values(guest: Guest, path: str, expected: str) -> None:
    answer = guest.get(path)

    assert answer.text == expected
    assert answer.headers["Metadata-Flavor"] == "Google"
    assert answer.headers["ETag"]


def test_what_is_not_there_is_a_404(guest: Guest) -> None:
    assert guest.get("instance/attributes/nope").status_code == 404


def test_recursive_gives_json_in_camel_case_with_the_users_names_kept(guest: Guest) -> None:
    found = guest.get("instance/", recursive="true").json()

    assert found["attributes"]["enable-guest-attributes"] == "TRUE"
    assert found["maintenanceEvent"] == "NONE"
    assert "token" not in found["serviceAccounts"]["default"]


def test_the_users_names_are_kept_however_deep_the_question_starts(guest: Guest) -> None:
    found = guest.get("instance/attributes/", recursive="true").json()

    assert found["enable-guest-attributes"] == "TRUE"


def test_a_waiting_request_returns_when_the_value_changes(api: Api, guest: Guest) -> None:
    before = guest.get("instance/attributes/", recursive="true")
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(
            guest.get(
                "instance/attributes/",
                recursive="true",
                wait_for_change="true",
                last_etag=before.headers["ETag"],
            )
        )
    )
    thread.start()
    current = api.get().json()["metadata"]
    items = [*current["items"], {"key": "stop", "value": "now"}]
    api.post("vm", "setMetadata", {"items": items, "fingerprint": current["fingerprint"]})
    thread.join(20)

    assert answers[0].json()["stop"] == "now"


def test_a_waiting_request_returns_at_its_timeout(guest: Guest) -> None:
    answer = guest.get("instance/name", wait_for_change="true", timeout_sec="1")

    assert answer.text == "vm"
    assert answer.elapsed.total_seconds() >= 0.9


@pytest.mark.parametrize("seconds", ["abc", "-1", "1.5", "nan"])
def test_a_timeout_that_is_no_number_is_a_400(guest: Guest, seconds: str) -> None:
    answer = guest.get("instance/name", wait_for_change="true", timeout_sec=seconds)

    assert answer.status_code == 400


def test_a_guest_attribute_that_is_no_text_is_a_400(guest: Guest) -> None:
    url = guest.base + "instance/guest-attributes/train/binary"
    answer = requests.put(url, headers=FLAVOR, data=b"\xff\xfe", timeout=30)

    assert answer.status_code == 400
    assert guest.get("instance/guest-attributes/train/binary").status_code == 404


def test_guest_attributes_go_both_ways(api: Api, guest: Guest) -> None:
    url = guest.base + "instance/guest-attributes/train/epoch"
    requests.put(url, headers=FLAVOR, data="3", timeout=30)
    listed = requests.get(
        f"{api.zone}/instances/vm/getGuestAttributes", params={"queryPath": "train/"}, timeout=30
    )

    assert guest.get("instance/guest-attributes/train/epoch").text == "3"
    assert listed.json()["queryValue"]["items"] == [
        {"namespace": "train", "key": "epoch", "value": "3"}
    ]


def test_guest_attributes_not_there_are_a_404_in_gclouds_words(api: Api, guest: Guest) -> None:
    answer = requests.get(
        f"{api.zone}/instances/vm/getGuestAttributes", params={"queryPath": "none/"}, timeout=30
    )

    assert answer.status_code == 404
    assert "'Guest Attribute' was not found" in answer.json()["error"]["message"]


def test_host_keys_are_published(api: Api, guest: Guest) -> None:
    def published() -> Any:
        url = f"{api.zone}/instances/vm/getGuestAttributes"
        return requests.get(url, params={"queryPath": "hostkeys/"}, timeout=30).ok

    eventually(published, "host keys")


def test_google_auth_finds_project_and_token(guest: Guest) -> None:
    program = (
        "import google.auth, google.auth.transport.requests as t, json;"
        "c, p = google.auth.default(); c.refresh(t.Request());"
        "print(json.dumps([p, c.token, c.service_account_email]))"
    )
    environment = {
        "GCE_METADATA_HOST": guest.host,
        "GCE_METADATA_IP": guest.host,
        "HOME": "/nonexistent",
        "PATH": "/usr/bin:/bin",
    }
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    project, token, email = json.loads(output)

    assert project == "emulator-project"
    assert token.startswith("ya29.")
    assert email.endswith("gserviceaccount.com")


def test_an_operation_names_the_account_that_began_it(emulator: Emulator, api: Api) -> None:
    account = {"email": "trainer@p.iam.gserviceaccount.com", "scopes": [CLOUD_PLATFORM]}
    instance = api.create(serviceAccounts=[account])
    guest = Guest(instance, emulator.instance_directory("vm"))
    token = guest.get("instance/service-accounts/default/token").json()["access_token"]
    own = requests.post(
        f"{api.zone}/instances/vm/reset", headers={"Authorization": f"Bearer {token}"}, timeout=30
    )

    assert own.json()["user"] == account["email"]
    assert api.delete().json()["user"] == "user@example.com"


KEY = "alice:ssh-ed25519 AAAA alice@laptop"
EXPIRING = 'alice:ssh-ed25519 BBBB google-ssh {"userName":"alice","expireOn":"%s"}'


@pytest.mark.parametrize(
    ("instance", "project", "expected"),
    [
        ({"ssh-keys": KEY}, {}, ["ssh-ed25519 AAAA"]),
        ({}, {"ssh-keys": KEY}, ["ssh-ed25519 AAAA"]),
        ({"block-project-ssh-keys": "TRUE"}, {"ssh-keys": KEY}, []),
        ({"block-project-ssh-keys": "yes"}, {"ssh-keys": KEY}, []),
        ({"ssh-keys": KEY, "enable-oslogin": "TRUE"}, {}, []),
        ({"ssh-keys": KEY, "enable-oslogin": "1"}, {}, []),
        ({"ssh-keys": KEY}, {"enable-oslogin": "TRUE"}, []),
        (
            {"ssh-keys": KEY, "enable-oslogin": "FALSE"},
            {"enable-oslogin": "TRUE"},
            ["ssh-ed25519 AAAA"],
        ),
        ({"ssh-keys": "bob:ssh-ed25519 AAAA"}, {}, []),
        ({"ssh-keys": EXPIRING % "1970-01-01T00:10:00+0000"}, {}, []),
        ({"ssh-keys": EXPIRING % "1970-01-01T01:00:00+0000"}, {}, ["ssh-ed25519 BBBB"]),
        ({"ssh-keys": "alice:ssh-ed25519 BBBB google-ssh {broken"}, {}, []),
        ({"ssh-keys": f"alice:garbage\nalice:\n{KEY}"}, {}, ["ssh-ed25519 AAAA"]),
    ],
)
def test_keys_are_read_as_the_guest_agent_reads_them(
    instance: dict[str, str], project: dict[str, str], expected: list[str]
) -> None:
    found = authorized_keys("alice", instance, project, now=1000.0)

    assert found == [key.strip() for key in expected]
