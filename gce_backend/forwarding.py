"""May the instance itself bring what is logged to the tracking server, and with what credentials?

It may where the client needs none either, or where the user keeps the server's in Secret Manager.
The client's own never leave the client.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

from gce_backend.config import Settings, TrackingForward
from gce_backend.errors import ConfigError
from gce_backend.urls import is_loopback, without_credentials

_CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"  # Secret Manager knows no other

# With one of these the client is known to the server, or reaches it, in a way the instance cannot.
_OF_THE_CLIENT = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
)
_OF_THE_CONNECTION = (
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
)


def forward_target(
    tracking_uri: str, settings: Settings, environ: Mapping[str, str] = os.environ
) -> dict[str, Any] | None:
    """The spec's ``tracking.forward``; None: only a client applies the journal.

    Raises:
        ConfigError: the secret would travel unencrypted to a public address.
    """
    wanted = settings.gce.tracking
    parts = urllib.parse.urlsplit(tracking_uri)
    if (
        wanted.forward is TrackingForward.never
        or parts.scheme not in ("http", "https")
        or is_loopback(tracking_uri)
        or without_credentials(tracking_uri) != tracking_uri
        or any(environ.get(name) for name in _OF_THE_CONNECTION)
    ):
        return None
    secret = wanted.token_secret or wanted.login_secret
    if secret is None:
        return None if _has_credentials(environ) else {"uri": tracking_uri, "secret": None}
    if parts.scheme == "http" and not _is_private(parts.hostname or ""):
        raise ConfigError(
            f"the tracking server {tracking_uri} is reached over plain http: the secret {secret} "
            "would travel in the clear. Use https, or keep the client's way: gce.tracking.forward="
            "never"
        )
    kind = "token" if wanted.token_secret else "login"
    version = "" if "/versions/" in secret else "/versions/latest"
    return {"uri": tracking_uri, "secret": {"name": secret + version, "kind": kind}}


def permitted(settings: Settings, target: Mapping[str, Any] | None) -> Settings:
    """``settings`` with the scope that reading the target's secret takes."""
    gce = settings.gce
    if not target or not target["secret"] or _CLOUD_PLATFORM in gce.scopes:
        return settings
    wider = dataclasses.replace(gce, scopes=[*gce.scopes, _CLOUD_PLATFORM])
    return dataclasses.replace(settings, gce=wider)


def _has_credentials(environ: Mapping[str, str]) -> bool:
    """In the environment, or in MLflow's credentials file."""
    if any(environ.get(name) for name in _OF_THE_CLIENT):
        return True
    from mlflow.utils.credentials import read_mlflow_creds

    found = read_mlflow_creds()
    return bool(found.username or found.password)


def _is_private(host: str) -> bool:
    """An address that no public network carries, or a name that Compute Engine gives out."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host.endswith(".internal")
