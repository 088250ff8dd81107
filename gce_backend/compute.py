"""Compute Engine through google-cloud-compute: instances as plain resources, errors as ours.

Resources are dictionaries in the API's own JSON (camelCase), so that what is written here is what
the API's documentation shows.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

from gce_backend.compute_errors import (
    from_operation,
    is_transient,
    may_have_effect,
    translated,
)
from gce_backend.errors import (
    AlreadyExists,
    ChangedMeanwhile,
    ComputeError,
    InstanceNotFound,
    OperationTimeout,
    PermissionDenied,
)
from gce_backend.polling import DeadlinePassed, retry, wait_until

T = TypeVar("T")
Resource = dict[str, Any]
Operations: TypeAlias = list[Resource]  # inside Compute the name `list` is the method

_CALL_SECONDS = 60.0  # one HTTP request; the library's own default is 600
_RETRY_SECONDS = 120.0
_INSERT_SECONDS = 900.0  # what the library and gcloud allow an insert, roughly
_DELETE_SECONDS = 600.0
_DELETE_PAUSES = (1.0, 2.0, 5.0, 10.0)  # before the delete is sent again
_API = "https://www.googleapis.com/compute/v1"  # how the API spells its own links


class Compute:
    """The calls this project makes, for one Google Cloud project.

    Args:
        endpoint: None for Google's; otherwise a URL such as ``http://127.0.0.1:1234/compute/v1/``.
            The emulator behind it asks for no credentials.
        retry_seconds: how long one call is repeated while the API does not answer.
    """

    def __init__(
        self,
        project: str,
        *,
        endpoint: str | None = None,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self.project = project
        self._retry_seconds = retry_seconds
        self._options: dict[str, Any] = {}
        if endpoint:
            from google.auth.credentials import AnonymousCredentials

            self._options = {
                "client_options": {"api_endpoint": endpoint.split("/compute/v1")[0].rstrip("/")},
                "credentials": AnonymousCredentials(),  # type: ignore[no-untyped-call]
            }
        self._clients: dict[str, Any] = {}

    def insert(self, zone: str, body: Resource) -> None:
        """Create the instance ``body`` describes and wait until its operation has ended.

        Every retry carries the same request id, so a reply that got lost makes no second instance.

        Raises:
            NoCapacity, QuotaExceeded, InternalError, PermissionDenied, ComputeError: the instance
                does not exist.
            AlreadyExists: somebody else's bears the name; one of ours is adopted.
            OperationTimeout: it is, or may yet come to be; delete it by name.
        """
        from google.cloud import compute_v1

        unanswered: list[Exception] = []

        def send() -> Any:
            try:
                return self._instances.insert_unary(request, timeout=_CALL_SECONDS)
            except Exception as error:
                unanswered.extend([error] if may_have_effect(error) else [])
                raise

        what = f"creating instance {body['name']!r} in {zone}"
        request = compute_v1.InsertInstanceRequest(
            project=self.project,
            zone=zone,
            request_id=str(uuid.uuid4()),
            instance_resource=compute_v1.Instance.from_json(json.dumps(body)),
        )
        try:
            with translated(what):
                self._finish(what, zone, self._call(send), seconds=_INSERT_SECONDS)
        except AlreadyExists:
            # An earlier insert of ours took effect, and its reply did not reach us. Not ours:
            # its labels say so, and it is left alone.
            try:
                found = self.get(zone, body["name"])
            except PermissionDenied as error:
                raise OperationTimeout(f"{what}: it exists already, and {error}") from error
            if found.get("labels") != body.get("labels"):
                raise
        except PermissionDenied as error:  # of this try: the one before may have made it
            if not unanswered:
                raise
            raise OperationTimeout(
                f"{error}; a try before it got no answer ({unanswered[0]})"
            ) from error

    def start(self, zone: str, name: str) -> None:
        """Start a stopped instance and wait until its operation has ended.

        Raises:
            NoCapacity, ComputeError: it is stopped still.
        """
        what = f"starting zones/{zone}/instances/{name}"
        with translated(what):
            operation = self._call(
                lambda: self._instances.start_unary(
                    project=self.project, zone=zone, instance=name, timeout=_CALL_SECONDS
                )
            )
            self._finish(what, zone, operation, seconds=_INSERT_SECONDS)

    def get(self, zone: str, name: str) -> Resource:
        """The instance's resource.

        Raises:
            InstanceNotFound: the API said 404, of this instance.
        """
        with translated(f"reading zones/{zone}/instances/{name}"):
            return _plain(self._call(lambda: self._get(zone, name)))

    def operations_on(self, zone: str, name: str) -> Operations:
        """What was done to the instance, by us or by Compute Engine: its operations' resources.

        Of operationType ``insert``, ``delete``, ``compute.instances.preempted``,
        ``compute.instances.hostError`` …; kept for about two weeks, also when it is gone.
        """
        from google.cloud import compute_v1

        target = f"/projects/{self.project}/zones/{zone}/instances/{name}"
        request = compute_v1.ListZoneOperationsRequest(
            project=self.project,
            zone=zone,
            filter=f'targetLink = "{_API}{target}"',
            max_results=100,
        )
        with translated(f"listing the operations in {zone}"):
            pages = self._call(lambda: self._operations.list(request, timeout=_CALL_SECONDS))
            return [_plain(each) for each in pages]

    def exists(self, zone: str, name: str) -> bool:
        """False only when a GET said 404."""
        try:
            self.get(zone, name)
        except InstanceNotFound:
            return False
        return True

    def delete(self, zone: str, name: str) -> None:
        """Delete the instance and return once a GET says 404; a missing one is a success.

        Raises:
            OperationTimeout: it was still there after ten minutes.
            ComputeError: the API refused; the instance may still bill.
        """
        what = f"deleting zones/{zone}/instances/{name}"
        end = time.monotonic() + _DELETE_SECONDS
        for pause in (*_DELETE_PAUSES, None):
            try:
                return self._delete_once(what, zone, name, end)
            except PermissionDenied:
                raise
            except ComputeError:
                # One that met a shutdown or another operation fails, and has no effect: again.
                if pause is None or time.monotonic() + pause > end:
                    raise
                time.sleep(pause)

    def _delete_once(self, what: str, zone: str, name: str, end: float) -> None:
        """One delete, followed to a GET that says 404, or to its operation's own error."""
        from google.cloud import compute_v1

        request = compute_v1.DeleteInstanceRequest(
            project=self.project, zone=zone, instance=name, request_id=str(uuid.uuid4())
        )
        operation = ""
        try:
            with translated(what):
                operation = self._call(
                    lambda: self._instances.delete_unary(request, timeout=_CALL_SECONDS)
                ).name
        except InstanceNotFound:
            pass  # still confirmed by a GET
        except ComputeError as error:
            # A delete that somebody else began makes ours fail (400 or 409: not ready); whether
            # it is on its way shows in the instance's status.
            if isinstance(error, PermissionDenied) or not self._is_going(zone, name):
                raise

        def gone() -> ComputeError | bool | None:
            if not self.exists(zone, name):
                return True
            return self._failure_of(what, zone, operation) if operation else None

        try:
            found = wait_until(gone, seconds=max(0.0, end - time.monotonic()), what=what)
        except DeadlinePassed as error:
            raise OperationTimeout(
                f"{what}: it still exists {_DELETE_SECONDS:.0f} s after the delete was accepted"
            ) from error
        if isinstance(found, ComputeError):
            raise found

    def set_metadata(self, zone: str, name: str, key: str, value: str) -> None:
        """Set one metadata attribute, leaving the others as they are."""

        def attempt() -> bool | None:
            from google.api_core.exceptions import PreconditionFailed
            from google.cloud import compute_v1

            instance = self._get(zone, name)
            metadata = _plain(instance).get("metadata", {})
            items = [item for item in metadata.get("items", []) if item["key"] != key]
            metadata["items"] = [*items, {"key": key, "value": value}]
            try:
                operation = self._instances.set_metadata_unary(
                    project=self.project,
                    zone=zone,
                    instance=name,
                    metadata_resource=compute_v1.Metadata.from_json(json.dumps(metadata)),
                    timeout=_CALL_SECONDS,
                )
                self._finish(what, zone, operation, seconds=60)
            except (ChangedMeanwhile, PreconditionFailed):
                return None  # somebody changed it between our read and our write: read again
            return True

        what = f"setting metadata {key!r} of zones/{zone}/instances/{name}"
        try:
            with translated(what):
                wait_until(lambda: self._call(attempt), seconds=60, what=what)
        except DeadlinePassed as error:
            raise OperationTimeout(f"{what}: somebody else keeps changing it") from error

    def list(self, label_filter: str) -> Iterator[tuple[str, Resource]]:
        """(zone, instance) for every instance of the project that matches, in all zones.

        Args:
            label_filter: the API's filter, e.g. ``labels.mlflow-gce-run:*``.
        """
        from google.cloud import compute_v1

        request = compute_v1.AggregatedListInstancesRequest(
            project=self.project, filter=label_filter, max_results=500
        )
        with translated(f"listing the instances of project {self.project!r}"):
            pages = self._call(
                lambda: self._instances.aggregated_list(request, timeout=_CALL_SECONDS)
            )
            for scope, scoped in pages:
                for instance in scoped.instances:
                    yield scope.removeprefix("zones/"), _plain(instance)

    def guest_attributes(self, zone: str, name: str, namespace: str) -> dict[str, str]:
        """What the instance has published under ``namespace``; empty while that is nothing.

        Raises:
            InstanceNotFound: there is no instance.
            ComputeError: the API refused, as for an instance that does not run.
        """
        from google.api_core.exceptions import NotFound
        from google.cloud import compute_v1

        request = compute_v1.GetGuestAttributesInstanceRequest(
            project=self.project, zone=zone, instance=name, query_path=f"{namespace}/"
        )
        with translated(f"reading the guest attributes {namespace}/ of {name!r} in {zone}"):
            try:
                answer = self._call(
                    lambda: self._instances.get_guest_attributes(request, timeout=_CALL_SECONDS)
                )
            except NotFound:
                self.get(zone, name)  # raises when it is the instance that is not found
                return {}
            return {item.key: item.value for item in answer.query_value.items}

    def serial_output(self, zone: str, name: str) -> str:
        """What the instance has written to its first serial port; "" when it cannot be read."""
        try:
            with translated(f"reading the serial port of zones/{zone}/instances/{name}"):
                output = self._call(
                    lambda: self._instances.get_serial_port_output(
                        project=self.project, zone=zone, instance=name, timeout=_CALL_SECONDS
                    )
                )
                return str(output.contents)
        except ComputeError:
            return ""

    def _finish(self, what: str, zone: str, operation: Any, *, seconds: float) -> None:
        """Wait for ``operation`` to be DONE and raise what it carries.

        Polls through a client of our own: the one that ExtendedOperation builds ignores the
        endpoint it was given.
        """
        name = operation.name

        def done() -> Resource | None:
            try:
                with translated(f"{what}: reading its operation"):
                    current = _plain(
                        self._call(
                            lambda: self._operations.wait(
                                project=self.project, zone=zone, operation=name, timeout=150
                            )
                        )
                    )
            except PermissionDenied as error:  # of reading: what it does may be done all the same
                raise OperationTimeout(str(error)) from error
            return current if current.get("status") == "DONE" else None

        first = _plain(operation)
        try:
            ended = (
                first
                if first.get("status") == "DONE"
                else wait_until(done, seconds=seconds, what=what)
            )
        except DeadlinePassed as error:
            raise OperationTimeout(
                f"{what}: operation {name!r} has not ended after {seconds:.0f} s"
            ) from error
        if failure := from_operation(what, ended):
            raise failure

    def _is_going(self, zone: str, name: str) -> bool:
        try:
            return self.get(zone, name).get("status") in (
                "STOPPING",
                "PENDING_STOP",
                "DEPROVISIONING",
            )
        except InstanceNotFound:
            return True

    def _failure_of(self, what: str, zone: str, operation: str) -> ComputeError | None:
        """The error of an operation that has ended with one; None where that cannot be read."""
        try:
            with translated(f"{what}: reading its operation"):
                current = _plain(
                    self._call(
                        lambda: self._operations.get(
                            project=self.project,
                            zone=zone,
                            operation=operation,
                            timeout=_CALL_SECONDS,
                        )
                    )
                )
        except PermissionDenied:
            return None
        return from_operation(what, current) if current.get("status") == "DONE" else None

    def _get(self, zone: str, name: str) -> Any:
        return self._instances.get(
            project=self.project,
            zone=zone,
            instance=name,
            timeout=min(_CALL_SECONDS, max(5.0, self._retry_seconds)),
            retry=None,  # the library's own goes on for ten minutes on 503
        )

    def _call(self, call: Callable[[], T]) -> T:
        return retry(call, is_transient=is_transient, seconds=self._retry_seconds)

    @property
    def _instances(self) -> Any:
        return self._client("InstancesClient")

    @property
    def _operations(self) -> Any:
        return self._client("ZoneOperationsClient")

    def _client(self, name: str) -> Any:
        if name not in self._clients:
            from google.cloud import compute_v1  # 1 to 1.5 s: imported when first needed

            with translated("reading the credentials"):
                self._clients[name] = getattr(compute_v1, name)(**self._options)
        return self._clients[name]


def _plain(message: Any) -> Resource:
    """A proto-plus message as the API's own JSON, without the fields that are not set."""
    text = type(message).to_json(
        message,
        use_integers_for_enums=False,
        always_print_fields_with_no_presence=False,
        preserving_proto_field_name=False,
    )
    resource: Resource = json.loads(text)
    return resource
