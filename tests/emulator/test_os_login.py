"""Who gets in: OS Login's switch, its users, blocked project keys, keys that expire."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paramiko
import pytest
import requests

from gce_backend.emulator import Emulator

from .conftest import Api
from .test_ssh import connect, key, metadata, run

__all__ = ["key"]  # the fixture

pytestmark = pytest.mark.flow

ON = {"key": "enable-oslogin", "value": "TRUE"}
USER = "ann_example_com"


@pytest.fixture(autouse=True)
def _project_without_metadata(api: Api) -> Any:
    yield
    set_project_metadata(api, [])


def set_project_metadata(api: Api, items: list[dict[str, str]]) -> None:
    operation = requests.post(
        f"{api.base}/setCommonInstanceMetadata", json={"items": items}, timeout=30
    ).json()
    requests.post(f"{api.base}/global/operations/{operation['name']}/wait", timeout=30)


def import_key(emulator: Emulator, key: Path, **more: str) -> dict[str, Any]:
    url = emulator.env["CLOUDSDK_API_ENDPOINT_OVERRIDES_OSLOGIN"]
    answer = requests.post(
        f"{url}v1/users/ann@example.com:importSshPublicKey",
        json={"key": key.with_suffix(".pub").read_text(), **more},
        timeout=30,
    )
    answer.raise_for_status()
    return answer.json()["loginProfile"]


@pytest.mark.parametrize("level", ["instance", "project"])
def test_with_os_login_on_keys_of_the_metadata_are_refused_and_imported_ones_let_in(
    emulator: Emulator, api: Api, key: Path, level: str
) -> None:
    items = metadata(key, USER)["items"]
    if level == "project":
        set_project_metadata(api, [ON])
    instance = api.create(metadata={"items": [*items, *([ON] if level == "instance" else [])]})
    with pytest.raises(paramiko.AuthenticationException):
        connect(instance, key, USER)
    refused = api.serial()
    profile = import_key(emulator, key)
    client = connect(instance, key, USER)
    said = run(client, "echo $USER")
    client.close()
    fingerprint = next(iter(profile["sshPublicKeys"]))
    url = emulator.env["CLOUDSDK_API_ENDPOINT_OVERRIDES_OSLOGIN"] + "v1/users/ann@example.com"
    requests.delete(f"{url}/sshPublicKeys/{fingerprint}", timeout=30).raise_for_status()

    assert "ssh-keys of the metadata do not count: enable-oslogin is TRUE" in refused
    assert [account["username"] for account in profile["posixAccounts"]] == [USER]
    assert said == (0, f"{USER}\n")
    with pytest.raises(paramiko.AuthenticationException):
        connect(instance, key, USER)


def test_an_instance_overrides_the_projects_switch(api: Api, key: Path) -> None:
    set_project_metadata(api, [ON])
    items = [*metadata(key)["items"], {**ON, "value": "FALSE"}]

    connect(api.create(metadata={"items": items}), key).close()


def test_a_key_of_os_login_expires_by_the_emulators_clock(
    emulator: Emulator, api: Api, key: Path
) -> None:
    instance = api.create(metadata={"items": [ON]})
    import_key(emulator, key, expirationTimeUsec=str(int((emulator.now() + 60) * 1e6)))
    connect(instance, key, USER).close()

    emulator.advance(61)

    with pytest.raises(paramiko.AuthenticationException):
        connect(instance, key, USER)


def test_project_keys_let_in_unless_they_are_blocked(api: Api, key: Path) -> None:
    set_project_metadata(api, metadata(key)["items"])
    connect(api.create("open"), key).close()
    blocked = api.create(
        "closed", metadata={"items": [{"key": "block-project-ssh-keys", "value": "TRUE"}]}
    )

    with pytest.raises(paramiko.AuthenticationException):
        connect(blocked, key)


def test_a_key_of_the_metadata_expires_by_the_emulators_clock(
    emulator: Emulator, api: Api, key: Path
) -> None:
    kind, public, *_ = key.with_suffix(".pub").read_text().split()
    moment = datetime.fromtimestamp(emulator.now() + 300, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
    line = f'alice:{kind} {public} google-ssh {{"userName":"alice","expireOn":"{moment}"}}'
    instance = api.create(metadata={"items": [{"key": "ssh-keys", "value": line}]})
    connect(instance, key).close()

    emulator.advance(301)

    with pytest.raises(paramiko.AuthenticationException):
        connect(instance, key)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "ann@example.com/sshPublicKeys/abc", None, 404),
        ("POST", "ann@example.com:importSshPublicKey", {"colour": "red"}, 400),
        ("POST", "ann@example.com:importSshPublicKey", {"key": 5}, 400),
        ("POST", "ann@example.com:importSshPublicKey", {"key": "garbage"}, 400),
        ("DELETE", "ann@example.com/projects/p", None, 501),
    ],
)
def test_what_os_login_does_not_take(
    emulator: Emulator, method: str, path: str, body: Any, status: int
) -> None:
    url = emulator.env["CLOUDSDK_API_ENDPOINT_OVERRIDES_OSLOGIN"] + "v1/users/" + path

    assert requests.request(method, url, json=body, timeout=30).status_code == status
