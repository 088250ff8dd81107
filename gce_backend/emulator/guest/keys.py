"""Who may log in: the ``ssh-keys`` of the metadata, as Google's guest agent reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

_FORMATS = ("%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S.%f%z")


def is_true(value: str) -> bool:
    """Of a boolean attribute: ``TRUE``, ``Y``, ``Yes`` and ``1`` mean the same, in any case."""
    return value.strip().upper() in ("TRUE", "Y", "YES", "1")


def os_login_is_on(instance: Mapping[str, str], project: Mapping[str, str]) -> bool:
    return is_true({**project, **instance}.get("enable-oslogin", ""))


def authorized_keys(
    user: str, instance: Mapping[str, str], project: Mapping[str, str], now: float
) -> list[str]:
    """Public keys (``ssh-ed25519 AAAA…``) that let ``user`` in at the moment ``now``.

    With OS Login on, none: the agent ignores metadata keys then. ``block-project-ssh-keys`` leaves
    the project's out. A line that is no key is passed over.
    """
    if os_login_is_on(instance, project):
        return []
    texts = [instance.get("ssh-keys", "")]
    if not is_true(instance.get("block-project-ssh-keys", "")):
        texts.append(project.get("ssh-keys", ""))
    keys = []
    for line in "\n".join(texts).splitlines():
        name, separator, key = line.strip().partition(":")
        words = key.split()
        if separator and name == user and len(words) >= 2 and not _is_expired(key, now):
            keys.append(" ".join(words[:2]))
    return keys


def _is_expired(key: str, now: float) -> bool:
    """``… google-ssh {"userName":…,"expireOn":…}``; what cannot be read counts as expired."""
    _, marker, rest = key.partition(" google-ssh ")
    if not marker:
        return False
    try:
        moment = str(json.loads(rest)["expireOn"])
    except (ValueError, KeyError, TypeError):
        return True
    for form in _FORMATS:
        try:
            return datetime.strptime(moment, form).astimezone(UTC).timestamp() <= now
        except ValueError:
            continue
    return True
