"""OS Login's users: who they are on an instance, and the keys they log in with.

Every account that has imported a key may log in everywhere: there is no IAM.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from .clock import Clock

Resource = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A public key (``ssh-ed25519 AAAA… comment``); ``expires_usec``: unix microseconds."""

    text: str
    expires_usec: int | None = None

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def resource(self, account: str) -> Resource:
        """The API's SshPublicKey."""
        expiry = {"expirationTimeUsec": str(self.expires_usec)} if self.expires_usec else {}
        return {
            "name": f"users/{account}/sshPublicKeys/{self.fingerprint}",
            "fingerprint": self.fingerprint,
            "key": self.text,
            **expiry,
        }


@dataclass
class Account:
    """A Google account's profile.

    Attributes:
        keys: by fingerprint.
        is_posix: its POSIX account exists; importing the first key makes it.
    """

    email: str
    keys: dict[str, Key] = field(default_factory=dict)
    is_posix: bool = False

    @property
    def username(self) -> str:
        """``ann_example_com`` of ``ann@example.com``, as OS Login makes it."""
        return re.sub(r"\W", "_", self.email.lower())[:32]

    def resource(self, project: str) -> Resource:
        """The API's LoginProfile."""
        number = str(10**9 + int(hashlib.sha256(self.email.encode()).hexdigest()[:7], 16))
        posix = {
            "name": f"users/{self.email}/projects/{project}",
            "primary": True,
            "username": self.username,
            "uid": number,
            "gid": number,
            "homeDirectory": f"/home/{self.username}",
            "operatingSystemType": "LINUX",
            "accountId": project,
        }
        keys = {name: key.resource(self.email) for name, key in self.keys.items()}
        return {
            "name": number,
            **({"posixAccounts": [posix]} if self.is_posix else {}),
            **({"sshPublicKeys": keys} if keys else {}),
        }


class OsLogin:
    """All accounts; one that nobody has asked for before has an empty profile."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def account(self, email: str) -> Account:
        return self._accounts.setdefault(email, Account(email))

    def keys_of(self, username: str) -> list[str]:
        """Keys (``ssh-ed25519 AAAA…``) that let a user in now; expired ones do not."""
        now = self._clock.now() * 1e6
        return [
            key.text
            for account in self._accounts.values()
            if account.is_posix and account.username == username
            for key in account.keys.values()
            if key.expires_usec is None or key.expires_usec > now
        ]
