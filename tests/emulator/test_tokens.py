"""Access tokens: whose they are, and for how long."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from gce_backend.emulator import Emulator
from gce_backend.emulator.clock import Clock
from gce_backend.emulator.errors import ApiError
from gce_backend.emulator.tokens import CLOUD_PLATFORM, LIFETIME_SECONDS, Tokens

from .conftest import ZONE, Api, body
from .test_metadata import Guest

SCOPES = frozenset({CLOUD_PLATFORM})
NEXT_DOOR = "europe-west1-c"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(clock)


def test_an_instance_gets_the_same_token_until_shortly_before_its_end(
    clock: Clock, tokens: Tokens
) -> None:
    first = tokens.issue("1", "vm", SCOPES)
    clock.advance(LIFETIME_SECONDS - 400)
    again = tokens.issue("1", "vm", SCOPES)
    clock.advance(150)
    renewed = tokens.issue("1", "vm", SCOPES)

    assert again == first
    assert renewed != first
    for token in (first, renewed):
        assert tokens.authenticate(f"Bearer {token.value}") == token


def test_a_token_expires(clock: Clock, tokens: Tokens) -> None:
    token = tokens.issue("1", "vm", SCOPES)
    clock.advance(LIFETIME_SECONDS + 1)

    with pytest.raises(ApiError, match="invalid authentication credentials"):
        tokens.authenticate(f"Bearer {token.value}")


def test_a_deletion_takes_the_instances_own_tokens_only(tokens: Tokens) -> None:
    gone, stays = tokens.issue("1", "vm", SCOPES), tokens.issue("2", "vm", SCOPES)

    tokens.forget("1")

    assert tokens.authenticate(f"Bearer {stays.value}") == stays
    with pytest.raises(ApiError):
        tokens.authenticate(f"Bearer {gone.value}")


def token_of(emulator: Emulator, instance: dict[str, Any]) -> dict[str, Any]:
    directory = emulator.root / "instances" / ZONE / instance["name"]
    return Guest(instance, directory).get("instance/service-accounts/default/token").json()


@pytest.mark.flow
def test_a_namesake_in_another_zone_may_go(emulator: Emulator, api: Api) -> None:
    accounts = [{"email": "default", "scopes": [CLOUD_PLATFORM]}]
    token = token_of(emulator, api.create(serviceAccounts=accounts))["access_token"]
    zone = f"{api.base}/zones/{NEXT_DOOR}"
    twin = body("vm", machineType=f"zones/{NEXT_DOOR}/machineTypes/n1-standard-2")
    for answer in (
        requests.post(f"{zone}/instances", json=twin, timeout=30),
        requests.delete(f"{zone}/instances/vm", timeout=30),
    ):
        operation = answer.json()["name"]
        requests.post(f"{zone}/operations/{operation}/wait", timeout=60).raise_for_status()

    headers = {"Authorization": f"Bearer {token}"}
    assert requests.get(f"{api.zone}/instances/vm", headers=headers, timeout=30).status_code == 200


@pytest.mark.flow
def test_the_metadata_server_says_what_is_left_of_a_token(emulator: Emulator, api: Api) -> None:
    instance = api.create(serviceAccounts=[{"email": "default", "scopes": [CLOUD_PLATFORM]}])
    first = token_of(emulator, instance)
    emulator.advance(1000)
    later = token_of(emulator, instance)
    emulator.advance(LIFETIME_SECONDS)
    headers = {"Authorization": f"Bearer {first['access_token']}"}

    assert later["access_token"] == first["access_token"]
    assert 2500 <= later["expires_in"] <= 2600
    assert requests.get(f"{api.zone}/instances/vm", headers=headers, timeout=30).status_code == 401


def at_own_address(emulator: Emulator, instance: dict[str, Any]) -> str:
    """Where an instance finds the services on the port of Compute Engine."""
    port = emulator.compute_url.rsplit(":", 1)[1].partition("/")[0]
    return f"http://{instance['networkInterfaces'][0]['networkIP']}:{port}"


@pytest.mark.flow
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "compute/v1/projects/emulator-project/zones/europe-west1-b/instances/other"),
        ("GET", "v1/projects/emulator-project/secrets/one/versions/1:access"),
        ("GET", "v1/users/ann@example.com/loginProfile"),
    ],
)
def test_an_instance_needs_a_token(emulator: Emulator, api: Api, method: str, path: str) -> None:
    emulator.put_secret("one", "x")
    api.create("other")
    accounts = [{"email": "default", "scopes": [CLOUD_PLATFORM]}]
    instance = api.create(serviceAccounts=accounts)
    url = f"{at_own_address(emulator, instance)}/{path}"
    headers = {"Authorization": f"Bearer {token_of(emulator, instance)['access_token']}"}

    without = requests.request(method, url, timeout=30)
    with_one = requests.request(method, url, headers=headers, timeout=30)

    assert (without.status_code, with_one.status_code) == (401, 200)


@pytest.mark.flow
def test_a_batch_lends_its_token_to_its_parts(emulator: Emulator, api: Api) -> None:
    accounts = [{"email": "default", "scopes": [CLOUD_PLATFORM]}]
    instance = api.create(serviceAccounts=accounts)
    path = f"/compute/v1/projects/emulator-project/zones/{ZONE}/instances/vm"
    part = f"Content-Type: application/http\r\n\r\nGET {path} HTTP/1.1\r\n\r\n"
    headers = {"Content-Type": "multipart/mixed; boundary=x"}
    token = {"Authorization": f"Bearer {token_of(emulator, instance)['access_token']}"}

    without, with_one = (
        requests.post(
            f"{at_own_address(emulator, instance)}/batch/compute/v1",
            data=f"--x\r\n{part}\r\n--x--\r\n",
            headers={**headers, **more},
            timeout=30,
        ).text
        for more in ({}, token)
    )

    assert "HTTP/1.1 401" in without
    assert "HTTP/1.1 200" in with_one
