"""Which tracking server an instance may write to, and with what."""

import dataclasses

import pytest

from gce_backend.config import TrackingAccess, TrackingForward, load_settings
from gce_backend.errors import ConfigError
from gce_backend.forwarding import forward_target, permitted

SECRET = "projects/p/secrets/mlflow"
OPEN = "http://10.1.2.3:5000"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_CLOUD_PROJECT", "p")
        patch.setenv("MLFLOW_GCE_BUCKET", "b")
        return load_settings(tmp_path_factory.mktemp("project"), environ={})


@pytest.fixture
def settings(base, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # where MLflow looks for its credentials file

    def with_tracking(**given):
        gce = dataclasses.replace(base.gce, tracking=TrackingAccess(**given))
        return dataclasses.replace(base, gce=gce)

    return with_tracking


def test_a_remote_server_without_credentials_is_forwarded_to(settings):
    assert forward_target(OPEN, settings(), {}) == {"uri": OPEN, "secret": None}


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////home/me/mlflow.db",
        "http://127.0.0.1:5000",
        "http://localhost:5000",
        "http://[::1]:5000",
        "https://me:password@mlflow.example.com",
        "databricks",
        "file:///home/me/mlruns",
        "postgresql://me@db/mlflow",
    ],
)
def test_a_store_that_an_instance_cannot_or_must_not_reach_is_the_clients(settings, uri):
    assert forward_target(uri, settings(), {}) is None
    assert forward_target(uri, settings(token_secret=SECRET), {}) is None


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_AUTH"]
)
def test_the_clients_credentials_stay_at_the_client(settings, name):
    assert forward_target(OPEN, settings(), {name: "x"}) is None
    with_secret = forward_target(OPEN, settings(token_secret=SECRET), {name: "x"})
    assert with_secret == {
        "uri": OPEN,
        "secret": {"name": f"{SECRET}/versions/latest", "kind": "token"},
    }


def test_mlflows_credentials_file_counts_as_well(settings, tmp_path):
    file = tmp_path / ".mlflow" / "credentials"
    file.parent.mkdir()
    file.write_text("[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = x\n")

    assert forward_target(OPEN, settings(), {}) is None


def test_a_private_certificate_is_known_to_the_client_alone(settings):
    environ = {"MLFLOW_TRACKING_SERVER_CERT_PATH": "/home/me/ca.pem"}

    assert forward_target("https://mlflow", settings(token_secret=SECRET), environ) is None


def test_forwarding_can_be_switched_off(settings):
    never = settings(forward=TrackingForward.never, token_secret=SECRET)

    assert forward_target("https://mlflow.example.com", never, {}) is None


def test_a_login_keeps_the_version_it_names(settings):
    given = settings(login_secret=f"{SECRET}/versions/3")

    assert forward_target("https://mlflow.example.com", given, {}) == {
        "uri": "https://mlflow.example.com",
        "secret": {"name": f"{SECRET}/versions/3", "kind": "login"},
    }


@pytest.mark.parametrize("host", ["mlflow.example.com", "8.8.8.8"])
def test_no_secret_travels_in_the_clear(settings, host):
    given = settings(token_secret=SECRET)

    with pytest.raises(ConfigError, match="would travel in the clear"):
        forward_target(f"http://{host}:5000", given, {})
    assert forward_target("http://mlflow.europe-west1-b.c.p.internal", given, {})


def test_reading_a_secret_takes_a_scope_and_nothing_else_does(settings):
    plain = settings()
    secret = settings(token_secret=SECRET)

    assert permitted(plain, forward_target(OPEN, plain, {})) == plain
    scopes = permitted(secret, forward_target(OPEN, secret, {})).gce.scopes
    assert scopes == [*plain.gce.scopes, "https://www.googleapis.com/auth/cloud-platform"]


@pytest.mark.parametrize(
    "given",
    [
        {"gce.tracking.token_secret": "hunter2"},
        {"gce.tracking.token_secret": "projects/p/secrets/a b"},
        {"gce.tracking.login_secret": "projects/p/secrets/n/versions/"},
        {"gce.tracking.login_secret": "projects/p/secret/n"},
    ],
)
def test_a_secret_itself_is_refused_and_not_repeated(tmp_path, given, monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    monkeypatch.setenv("MLFLOW_GCE_BUCKET", "b")
    (key,) = given
    with pytest.raises(ConfigError) as error:
        load_settings(tmp_path, backend_config=given, environ={})

    assert str(error.value).startswith(f"{key} must be the name of a secret in Secret Manager")
    assert given[key] not in str(error.value)


def test_a_token_and_a_login_at_once_are_one_too_many(tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    monkeypatch.setenv("MLFLOW_GCE_BUCKET", "b")
    both = {"gce.tracking.token_secret": SECRET, "gce.tracking.login_secret": SECRET}
    with pytest.raises(ConfigError, match="not both"):
        load_settings(tmp_path, backend_config=both, environ={})
