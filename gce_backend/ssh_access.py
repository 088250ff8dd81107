"""Reaching the instance of one run: its proven host key, the run's own key, the way to it.

The host keys come from the instance's guest attributes, which Compute Engine serves, and count from
the first time they are read: later ones may be somebody else's, since any process on the instance
can write guest attributes. The first reader also leaves them in the bucket, for other machines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from gce_backend.compute import Compute
from gce_backend.errors import (
    AuthenticationRefused,
    ComputeError,
    HostKeyRefused,
    InstanceNotFound,
    InstanceStopped,
    SshError,
    SshUnavailable,
    StorageError,
)
from gce_backend.polling import DeadlinePassed, wait_until
from gce_backend.ssh import Connection, parsed
from gce_backend.ssh_route import Route
from gce_backend.ssh_state import LOGIN, HostKeys, SshState
from gce_backend.storage import Storage
from gce_backend.submission import Submission

_STOPPED = ("TERMINATED", "STOPPED", "SUSPENDED")
_LENT_KEY_SECONDS = 24 * 3600.0  # of a key for another machine than the run's own
_NAMESPACE = "hostkeys"  # Google's guest agent and cloud-init publish there


class SshAccess:
    """Opens connections to a submission's instance.

    Args:
        via: another way than the run was submitted with.
    """

    def __init__(
        self,
        submission: Submission,
        compute: Compute,
        storage: Storage,
        *,
        route: Route,
        via: str | None = None,
    ) -> None:
        self._submission = submission
        self._compute = compute
        self._storage = storage
        self._route = route
        self._via = via or submission.ssh_via
        self._state = SshState(submission.run_id)

    def connect(self) -> Connection:
        """One try.

        Raises:
            SshUnavailable: not now; the instance boots, or cannot be reached.
            HostKeyRefused, AuthenticationRefused: somebody answers, and it does not work.
            SshError: there is no way, or no key, on this machine.
            InstanceNotFound: the instance is gone.
        """
        here = self._submission
        if self._via == "none":
            raise SshError(
                f"run {here.run_id} was submitted with gce.ssh.via=none: its instance "
                f"{here.instance!r} takes no SSH key. Its log is in {here.uri}/log"
            )
        if not self._state.has_key:
            raise SshError(
                f"this machine has no SSH key of run {here.run_id} (no {self._state.key_file})"
            )
        try:
            instance = self._compute.get(here.zone, here.instance)
        except InstanceNotFound:
            raise
        except ComputeError as error:
            raise SshUnavailable(str(error)) from error
        if instance.get("status") in _STOPPED:
            raise InstanceStopped(
                f"instance {here.instance!r} is {instance['status']}; only its disk bills. To boot "
                f"it again, so that its agent goes on, run:\n"
                f"  gcloud compute instances start {here.where}"
            )
        host_keys = self._host_keys(instance)
        sock = self._route.open(self._via, here.project, here.zone, instance)
        try:
            return Connection.open(
                sock,
                instance=here.instance,
                user=LOGIN,
                key_file=self._state.key_file,
                host_keys=host_keys,
            )
        except AuthenticationRefused as error:
            raise AuthenticationRefused(f"{error}. {_why_refused(instance)}") from error
        except HostKeyRefused as error:
            raise HostKeyRefused(
                f"{error}. What it said of its keys when it booted:\n"
                f"  gcloud compute instances get-serial-port-output {here.where}"
            ) from error

    def connect_within(self, seconds: float, say: Callable[[str], None]) -> Connection:
        """``connect``, repeated while the instance boots; ``say`` is told once what is missing.

        Raises:
            SshError: it did not work within ``seconds``; as ``connect``, immediately, what no
                patience mends.
        """
        last: list[SshError] = []

        def attempt() -> Connection | None:
            try:
                return self.connect()
            except InstanceStopped:
                raise
            except (SshUnavailable, AuthenticationRefused) as error:
                # The agent on the instance may still be about to enter the key.
                if not last:
                    say(f"{error}; trying for {seconds:.0f} s")
                last[:] = [error]
                return None

        try:
            return wait_until(attempt, seconds=seconds, what="SSH")
        except DeadlinePassed:
            error = last[0]
            raise type(error)(f"{error}. Tried for {seconds:.0f} s") from error

    def make_key(self) -> None:
        """Let this machine in too: a key of its own, added to the instance's metadata.

        Raises:
            ComputeError: the caller may not change the instance.
        """
        here = self._submission
        expires_at = min(here.deadline, time.time() + _LENT_KEY_SECONDS)
        line = self._state.make_key(expires_at)
        try:
            metadata = self._compute.get(here.zone, here.instance).get("metadata", {})
            items = {item["key"]: item["value"] for item in metadata.get("items", [])}
            lines = [*items.get("ssh-keys", "").splitlines(), line]
            self._compute.set_metadata(here.zone, here.instance, "ssh-keys", "\n".join(lines))
        except BaseException:
            self._state.key_file.unlink(missing_ok=True)
            raise

    @property
    def takes_keys(self) -> bool:
        """Whether the instance was asked for with SSH."""
        return self._submission.ssh_via != "none"

    @property
    def has_key(self) -> bool:
        return self._state.has_key

    def _host_keys(self, instance: dict[str, Any]) -> HostKeys:
        """The pinned host keys; the first time, those that the instance publishes.

        Raises:
            SshUnavailable: it has published none yet.
        """
        identity = str(instance["id"])  # a name may be given out again, the number never is
        if (pinned := self._state.pinned(identity)) is not None:
            return pinned
        left = self._left_in_bucket(identity)
        keys = left or self._published()
        if not parsed(keys):
            raise SshUnavailable(
                f"instance {self._submission.instance!r} is {instance.get('status')} and has not "
                "published its SSH host keys (guest attributes hostkeys/*). Without them nobody "
                "can be told from the instance, so there is no connection"
            )
        keys = self._state.pin(identity, keys)
        if not left:
            with contextlib.suppress(StorageError):
                self._storage.put_json(
                    self._submission.paths.host_keys, {"instance": identity, "keys": dict(keys)}
                )
        return keys

    def _left_in_bucket(self, identity: str) -> HostKeys:
        """What the first reader left, if it was about this very instance."""
        try:
            left = self._storage.read_json(self._submission.paths.host_keys)
        except StorageError as error:
            raise SshUnavailable(f"the pinned host keys cannot be read: {error}") from error
        if not left or left.get("instance") != identity:
            return {}
        keys: dict[str, str] = left["keys"]
        return keys

    def _published(self) -> HostKeys:
        here = self._submission
        try:
            return self._compute.guest_attributes(here.zone, here.instance, _NAMESPACE)
        except InstanceNotFound:
            raise
        except ComputeError as error:
            raise SshUnavailable(str(error)) from error


def _why_refused(instance: dict[str, Any]) -> str:
    """The usual reason, from the instance's metadata."""
    items = instance.get("metadata", {}).get("items", [])
    metadata = {item["key"]: str(item["value"]) for item in items}
    if metadata.get("enable-oslogin", "").upper() != "FALSE":
        return (
            "OS Login is not switched off in its metadata (enable-oslogin=FALSE), and with OS "
            "Login the keys there are ignored. Use: gcloud compute ssh"
        )
    if f"{LOGIN}:" not in metadata.get("ssh-keys", ""):
        return "The key is no longer in its metadata (ssh-keys)"
    return "Its guest agent may not have entered the key yet, or the key has expired"
