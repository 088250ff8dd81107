"""What this machine keeps for SSH to one run: the private key, and the pinned host keys.

The private key never leaves the directory; its public half goes into the instance's own metadata,
with the moment at which it stops counting. Host keys are pinned once and never replaced: whoever
can run code on the instance can publish others later. Everything goes when the instance is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gce_backend.errors import SshError

#: The login made by Google's guest agent from the metadata's key; it may use sudo. Not the
#: trainer's user.
LOGIN = "mlflow"

HostKeys = Mapping[str, str]  # type, e.g. "ssh-ed25519" -> base64


def state_root() -> Path:
    """``$XDG_STATE_HOME/mlflow-gce/runs``, by default below ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "mlflow-gce" / "runs"


class SshState:
    """The directory of one run; made when something is written."""

    def __init__(self, run_id: str) -> None:
        self.directory = state_root() / run_id
        self.key_file = self.directory / "id_ed25519"
        self._pins_file = self.directory / "host_keys.json"
        self._expiry_file = self.directory / "expires_at"

    def make_key(self, expires_at: float) -> str:
        """A new key, in place of an older one.

        Args:
            expires_at: unix seconds after which the instance no longer takes it.

        Returns:
            Its line for the metadata's ``ssh-keys``.

        Raises:
            SshError: the directory cannot be written.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            PublicFormat,
        )

        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        try:
            _forget_expired()
            self._write(self.key_file, private)
            self._write(self._expiry_file, f"{expires_at:.0f}".encode())
        except OSError as error:
            raise SshError(
                f"cannot keep an SSH key in {self.directory}: {error.strerror or error}. Set "
                "XDG_STATE_HOME to a directory that can be written"
            ) from error
        return metadata_line(public.decode(), expires_at)

    @property
    def has_key(self) -> bool:
        return self.key_file.exists()

    def pinned(self, instance: str) -> HostKeys | None:
        """The host keys that were read first, or None."""
        try:
            pins: dict[str, dict[str, str]] = json.loads(self._pins_file.read_bytes())
        except (OSError, ValueError):
            return None
        return pins.get(instance)

    def pin(self, instance: str, keys: HostKeys) -> HostKeys:
        """Keep ``keys`` as the instance's, unless some are kept already.

        Returns:
            Those that count from now on.
        """
        if (before := self.pinned(instance)) is not None:
            return before
        with contextlib.suppress(OSError):  # then they are pinned for this process alone
            self._write(self._pins_file, json.dumps({instance: dict(keys)}).encode())
        return keys

    def forget(self) -> None:
        """Remove everything: the instance is gone."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write(self, file: Path, content: bytes) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
        os.replace(temporary, file)


def metadata_line(public: str, expires_at: float) -> str:
    """A line of the metadata's ``ssh-keys``, in the form Google's guest agent lets expire.

    The agent wants the JSON without spaces and ``userName`` first, as gcloud writes it.
    """
    expires = datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
    details: dict[str, Any] = {"userName": LOGIN, "expireOn": expires}
    kind, key = public.split()[:2]
    return f"{LOGIN}:{kind} {key} google-ssh {json.dumps(details, separators=(',', ':'))}"


def _forget_expired() -> None:
    """Remove what runs left whose end nobody here has seen."""
    for directory in state_root().glob("*"):
        try:
            expires_at = float((directory / "expires_at").read_text())
        except (OSError, ValueError):
            continue
        if expires_at < time.time():
            shutil.rmtree(directory, ignore_errors=True)
