"""What the exceptions below Cloud Storage mean, in one table, and what may be an endpoint.

The seam of :mod:`gce_backend.storage`: exceptions of google.api_core, google.auth and requests come
in, :class:`~gce_backend.errors.StorageError` goes out, with what was tried, what came back, and the
next command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from gce_backend.credentials import explain
from gce_backend.errors import ConfigError, StorageError
from gce_backend.urls import is_address, is_loopback, stopped_emulator


class _Bucket(Protocol):
    bucket: str
    project: str | None


@dataclass(frozen=True)
class _Meaning:
    """What an exception of the libraries below says, and what to do about it."""

    reason: str
    advice: str
    transient: bool = False


_BUCKET = re.compile(r"[a-z0-9]([a-z0-9._-]{0,220}[a-z0-9])?")
_NO_LOGIN = _Meaning("there are no valid credentials", "")  # `explain` says more
_AGAIN = "Nothing was lost; try again."


@cache
def _meanings() -> dict[type[BaseException], _Meaning]:
    """The one translation table; the most specific class of an exception wins."""
    import requests
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from google.cloud.storage import exceptions as transfer

    away = _Meaning("Cloud Storage did not answer", _AGAIN, transient=True)
    return {
        api.NotFound: _Meaning(
            "it does not exist",
            "If it is the bucket that is missing, create it: "
            "gcloud storage buckets create gs://{bucket}{project} "
            "--location={location} --uniform-bucket-level-access",
        ),
        api.Forbidden: _Meaning(
            "access is refused",
            "Grant it with: gcloud storage buckets add-iam-policy-binding gs://{bucket} "
            "--member=user:YOU@EXAMPLE.COM --role=roles/storage.objectUser",
        ),
        api.Unauthorized: _NO_LOGIN,
        api.TooManyRequests: _Meaning("too many requests", _AGAIN, transient=True),
        api.PreconditionFailed: _Meaning("somebody else changed it", _AGAIN, transient=True),
        api.ServerError: _Meaning("Cloud Storage failed", _AGAIN, transient=True),
        api.RetryError: away,
        api.GoogleAPIError: _Meaning("Cloud Storage refused", "It was left as it is."),
        auth.TransportError: away,
        auth.GoogleAuthError: _NO_LOGIN,
        transfer.DataCorruption: _Meaning("the data arrived damaged", _AGAIN, transient=True),
        transfer.InvalidResponse: _Meaning("Cloud Storage refused", "It was left as it is."),
        requests.RequestException: away,
        ConnectionError: away,
        TimeoutError: away,
    }


@contextmanager
def translated(tried: str, storage: _Bucket, *, location: str = "europe-west1") -> Iterator[None]:
    """Turn the libraries' exceptions into `StorageError`, saying what was ``tried``."""
    try:
        yield
    except Exception as error:
        meaning = next((_meanings()[t] for t in type(error).__mro__ if t in _meanings()), None)
        if meaning is None:
            raise
        if meaning is _NO_LOGIN:
            raise StorageError(f"{tried}: {explain(error)}") from error
        if stopped := stopped_emulator(error):
            away = StorageError(f"{tried}: {stopped}")
            away.transient = True
            raise away from error
        advice = meaning.advice.format(
            bucket=storage.bucket,
            project=f" --project={storage.project}" if storage.project else "",
            location=location,
        )
        raised = StorageError(f"{tried}: {meaning.reason} ({_reply(error)}). {advice}")
        raised.transient = meaning.transient
        raise raised from error


def _reply(error: BaseException) -> str:
    """What came back, on one line: the server's own sentence where it sent one."""
    code = getattr(error, "code", None)
    response = getattr(error, "response", None)
    try:
        text = response.json()["error"]["message"] if response is not None else None
    except (ValueError, LookupError, TypeError, AttributeError):
        text = getattr(response, "text", None)
    text = " ".join(str(text or getattr(error, "message", None) or error).split())[:300]
    return f"{int(code)}: {text}" if isinstance(code, int) else text or type(error).__name__


def check_bucket_name(name: str, where: str = "bucket ") -> None:
    """Refuse what cannot be a bucket's name; the rest of the rules is Cloud Storage's to judge.

    Args:
        where: comes before the name in the message.

    Raises:
        ConfigError: with what a name is made of.
    """
    if not _BUCKET.fullmatch(name):
        raise ConfigError(
            f"{where}{name}: no bucket can have this name; it is made of lower-case letters, "
            "digits, '-', '_' and '.', and begins and ends with a letter or digit"
        )


def check_emulator_host(host: str | None) -> None:
    """Refuse a ``STORAGE_EMULATOR_HOST`` that would send data over the network unencrypted.

    Raises:
        ConfigError: naming the variable, its value, and what is allowed.
    """
    if not host:
        return
    if not is_address(host):
        raise ConfigError(
            f"STORAGE_EMULATOR_HOST={host!r} is not a URL; it needs its scheme, "
            "as in http://127.0.0.1:9000"
        )
    if host.startswith("http:") and not is_loopback(host):
        raise ConfigError(
            f"STORAGE_EMULATOR_HOST={host!r} is plain http to another machine; "
            "only a loopback address (127.0.0.1, localhost, [::1]) may be http"
        )
