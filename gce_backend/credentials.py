"""Google credentials, and what to do when there are none that work: one message, one command.

google-auth finds them (``GOOGLE_APPLICATION_CREDENTIALS``, gcloud's application default login, the
metadata server); its own errors name neither the file it read nor the command that helps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gce_backend.errors import PermissionDenied

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LOGIN = "gcloud auth application-default login"
_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"


def default_credentials() -> Any:
    """google-auth's credentials for every API used here.

    Raises:
        PermissionDenied: there are none; the message says which file was looked at, and the
            command that helps.
    """
    import google.auth
    import google.auth.exceptions

    try:
        return google.auth.default(scopes=[SCOPE])[0]
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionDenied(explain(error)) from error


def explain(error: Exception, environ: Mapping[str, str] = os.environ) -> str:
    """What is wrong with the credentials, and the command that mends it.

    Args:
        error: what google-auth raised.
    """
    named = environ.get(_VARIABLE)
    path = Path(named) if named else _well_known_file(environ)
    source = f"{_VARIABLE}={named}" if named else str(path)
    if named and not path.is_file():
        return (
            f"{source}: there is no such file. Name one that exists, or use your own login:\n"
            f"  unset {_VARIABLE} && {LOGIN}"
        )
    if not path.is_file():
        return f"there are no Google credentials ({path} does not exist). Run:\n  {LOGIN}"
    content = _read(path)
    if content is None:
        advice = f"unset {_VARIABLE} && {LOGIN}" if named else LOGIN
        return f"{source} is no credentials file of Google's. Run:\n  {advice}"
    return f"{source}: {_by_type(content, error)}"


def _by_type(content: Mapping[str, Any], error: Exception) -> str:
    """``content``: the parsed credentials file."""
    said = " ".join(str(error.args[0] if error.args else error).split())[:300]
    kind = content.get("type")
    if kind == "service_account":
        email = content.get("client_email", "SERVICE_ACCOUNT")
        return (
            f"the key of service account {email} is not accepted ({said}). It may have been "
            "deleted or disabled. Make a new one:\n"
            f"  gcloud iam service-accounts keys create KEY.json --iam-account={email}"
        )
    if kind == "impersonated_service_account":
        url = str(content.get("service_account_impersonation_url", ""))
        email = url.rpartition("/")[2].partition(":")[0] or "SERVICE_ACCOUNT"
        return (
            f"service account {email} could not be impersonated ({said}). Your own login may have "
            f"expired ({LOGIN} --impersonate-service-account={email}), or you lack the role:\n"
            f"  gcloud iam service-accounts add-iam-policy-binding {email} "
            "--member=user:YOU@EXAMPLE.COM --role=roles/iam.serviceAccountTokenCreator"
        )
    if kind == "external_account":
        return (
            f"workload identity federation gave no token ({said}). The file names where the "
            "subject token comes from; check that it is there, and the pool's provider:\n"
            "  gcloud iam workload-identity-pools providers list "
            "--workload-identity-pool=POOL --location=global"
        )
    if kind == "authorized_user":
        return f"your login has expired or was revoked ({said}). Run:\n  {LOGIN}"
    return f"these credentials are of an unknown type {kind!r} ({said}). Run:\n  {LOGIN}"


def _well_known_file(environ: Mapping[str, str]) -> Path:
    folder = environ.get("CLOUDSDK_CONFIG") or str(Path.home() / ".config" / "gcloud")
    return Path(folder) / "application_default_credentials.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
