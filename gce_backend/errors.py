"""Every error this package raises on purpose.

::

    GceBackendError                  .transient = False
    ├── ConfigError (ValueError)     before anything exists: names key, value, what is allowed
    ├── ProjectError                 the MLflow project cannot be run as asked
    ├── TrackingError                the MLflow store does not allow or does not answer
    ├── StorageError                 Cloud Storage refused or did not answer
    │   └── ResultsUnverified        what the run produced is not proven to be in the bucket
    ├── ComputeError                 Compute Engine refused or did not answer
    │   ├── NoCapacity               (transient) the zone is out of this machine type: next zone
    │   ├── InternalError            (transient) an operation broke off; of an insert: next zone
    │   ├── NotOffered               the zone has no such machine type or accelerator: next zone
    │   ├── QuotaExceeded            .is_global: no other region will help
    │   ├── PermissionDenied
    │   ├── AlreadyExists            an instance of that name, and not ours
    │   ├── ChangedMeanwhile         what we wrote was made of an older state: read again
    │   ├── InstanceNotFound         404: there is nothing that bills
    │   └── OperationTimeout         (transient)
    ├── SshError                     the live plane; never changes what becomes of a run
    │   ├── SshUnavailable           (transient) nothing answers there, or not yet
    │   │   └── InstanceStopped      it exists and does not run
    │   ├── HostKeyRefused           whoever answers is not proven to be the instance
    │   └── AuthenticationRefused    the instance is proven, and does not take our key
    ├── RunWaiting                   taken back, and no room for it now: a client must come back
    ├── FollowingLost                the run goes on, and we cannot watch it any more
    └── CleanupError                 an instance may still be billing: .instance, .zone

A leaf exists only where somebody acts differently on it. Messages say, in this order: what was
tried on which object, what came back, what is true of the instance now, the next command.
"""

from __future__ import annotations


class GceBackendError(Exception):
    """Base of all errors here; ``transient`` says that trying again may help."""

    transient = False


class ConfigError(GceBackendError, ValueError):
    """The configuration or a parameter is wrong; nothing was created."""


class ProjectError(GceBackendError):
    """The MLflow project cannot be run as asked; nothing was created."""


class TrackingError(GceBackendError):
    """The MLflow tracking store does not allow what is needed, or does not answer."""


class StorageError(GceBackendError):
    """Cloud Storage refused a call, or did not answer."""


class ResultsUnverified(StorageError):
    """What the run produced is not proven to be in the bucket; ``missing`` says what.

    Args:
        missing: one line for each object or file that is absent or differs.
    """

    def __init__(self, message: str, missing: list[str]) -> None:
        super().__init__(message)
        self.missing = missing


class ComputeError(GceBackendError):
    """Compute Engine refused a call, or did not answer."""


class NoCapacity(ComputeError):
    """The zone cannot supply this machine type now."""

    transient = True


class InternalError(ComputeError):
    """A call was accepted, and its operation ended in an internal error of Compute Engine."""

    transient = True


class NotOffered(ComputeError):
    """The zone has no such machine type or accelerator at all."""


class QuotaExceeded(ComputeError):
    """A quota is used up; ``is_global`` when no other region would help."""

    def __init__(self, message: str, *, is_global: bool = False) -> None:
        super().__init__(message)
        self.is_global = is_global


class PermissionDenied(ComputeError):
    """The caller lacks a permission."""


class InstanceNotFound(ComputeError):
    """A GET said 404: the instance does not exist and does not bill."""


class AlreadyExists(ComputeError):
    """There is an instance of that name, and it is not ours."""


class ChangedMeanwhile(ComputeError):
    """Somebody else changed it between our read and our write, which had no effect."""


class OperationTimeout(ComputeError):
    """An operation did not end in time, or could not be read; its effect may be there, or come."""

    transient = True


class SshError(GceBackendError):
    """SSH to an instance did not come about, or broke; the run goes on without it."""


class SshUnavailable(SshError):
    """Nothing answers at the instance's address, or not yet."""

    transient = True


class InstanceStopped(SshUnavailable):
    """The instance exists and does not run; somebody has to start it."""


class HostKeyRefused(SshError):
    """Whoever answered is not proven to be the instance; nothing was said to it."""


class AuthenticationRefused(SshError):
    """The instance answered, proved itself, and does not take our key."""


class RunWaiting(GceBackendError):
    """The run's instance was taken back; no instance bills, and the run can go on later."""


class FollowingLost(GceBackendError):
    """The run can no longer be watched from here; it goes on by itself."""


class CleanupError(GceBackendError):
    """An instance may still exist and bill."""

    def __init__(self, message: str, *, instance: str, zone: str) -> None:
        super().__init__(message)
        self.instance = instance
        self.zone = zone
