"""Secret Manager, as far as an instance reads a secret's version."""

from __future__ import annotations

import base64

import google_crc32c
import requests

from gce_backend.emulator import Emulator, Fault

from .conftest import Api

CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
STORAGE = "https://www.googleapis.com/auth/devstorage.read_write"


def access(
    emulator: Emulator, secret: str, token: str | None = None, version: str = "latest"
) -> requests.Response:
    base = emulator.env["CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER"]
    url = f"{base}v1/projects/{emulator.project}/secrets/{secret}/versions/{version}:access"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(url, headers=headers, timeout=10)


def token_of_an_instance(emulator: Emulator, api: Api, scope: str) -> str:
    account = {"email": "default", "scopes": [scope]}
    api.create("vm", serviceAccounts=[account])
    return str(emulator._life("vm")._view.access_token())


def test_an_instance_reads_a_version_with_the_scope_for_it(emulator: Emulator, api: Api) -> None:
    for value in ("old", "new ü"):
        emulator.put_secret("several", value)
    token = token_of_an_instance(emulator, api, CLOUD_PLATFORM)

    found = access(emulator, "several", token).json()

    data = base64.b64decode(found["payload"]["data"])
    assert data.decode() == "new ü"
    assert found["payload"]["dataCrc32c"] == str(google_crc32c.value(data))
    assert found["name"].endswith("/secrets/several/versions/2")
    first = access(emulator, "several", token, version="1").json()["payload"]["data"]
    assert base64.b64decode(first) == b"old"
    assert "new ü" not in str(emulator.calls)


def test_other_scopes_tokens_and_names_are_refused(emulator: Emulator, api: Api) -> None:
    emulator.put_secret("one", "x")
    token = token_of_an_instance(emulator, api, STORAGE)

    scope, bogus, unknown = (
        access(emulator, "one", token),
        access(emulator, "one", "ya29.bogus"),
        access(emulator, "none"),
    )

    assert (scope.status_code, bogus.status_code, unknown.status_code) == (403, 401, 404)
    assert "insufficient authentication scopes" in scope.json()["error"]["message"]
    assert unknown.json()["error"]["status"] == "NOT_FOUND"
    assert access(emulator, "one", version="2").status_code == 404


def test_a_missing_permission_is_a_fault(emulator: Emulator) -> None:
    emulator.put_secret("one", "x")
    emulator.inject(Fault("forbidden", "secretmanager.versions.access", "one"))

    denied = access(emulator, "one")

    assert denied.status_code == 403
    assert "secretmanager.versions.access" in denied.json()["error"]["message"]
    assert access(emulator, "one").status_code == 200


def test_secrets_come_by_the_control_endpoint_too(emulator: Emulator) -> None:
    control = emulator.compute_url.replace("/compute/v1/", "/_emulator/secrets")
    assert requests.post(control, json={"by-control": "y"}, timeout=10).status_code == 200

    data = access(emulator, "by-control").json()["payload"]["data"]
    assert base64.b64decode(data) == b"y"
