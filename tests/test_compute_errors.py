"""What Compute Engine answers, in our terms: decided by code and reason."""

import socket

import google.auth.exceptions
import pytest
import requests
from google.api_core import exceptions

from gce_backend.compute import Compute
from gce_backend.compute_errors import (
    from_operation,
    is_transient,
    may_have_effect,
    translated,
)
from gce_backend.errors import (
    ComputeError,
    InstanceNotFound,
    NoCapacity,
    NotOffered,
    PermissionDenied,
    QuotaExceeded,
)
from gce_backend.rest import compute_rest


def operation(code, message="m", **more):
    return {"status": "DONE", "error": {"errors": [{"code": code, "message": message}]}, **more}


OPERATIONS = [
    ("ZONE_RESOURCE_POOL_EXHAUSTED", NoCapacity),
    ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", NoCapacity),
    ("GPU_STOCKOUT", NoCapacity),
    ("UNSUPPORTED_OPERATION", NoCapacity),
    ("RESOURCE_NOT_FOUND", NoCapacity),
    ("QUOTA_EXCEEDED", QuotaExceeded),
    ("SOMETHING_NEW", ComputeError),
]


@pytest.mark.parametrize(("code", "kind"), OPERATIONS)
def test_errors_of_an_operation_are_told_by_their_code(code, kind):
    error = from_operation("creating instance 'x'", operation(code))

    assert type(error) is kind
    assert str(error) == f"creating instance 'x': {code}: m"


def test_an_operation_with_errors_but_no_http_status_is_no_success():
    assert from_operation("x", {"status": "DONE", **operation("ANY")}) is not None


def test_an_operation_with_a_status_but_no_errors_is_no_success():
    assert from_operation("x", {"status": "DONE", "httpErrorStatusCode": 404}) is not None


def test_an_operation_without_errors_is_one():
    assert from_operation("x", {"status": "DONE"}) is None


@pytest.mark.parametrize(
    ("message", "is_global"),
    [
        ("Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally.", True),
        ("Quota 'CPUS' exceeded.  Limit: 24.0 in region europe-west1.", False),
    ],
)
def test_a_quota_of_all_regions_is_told_from_one_of_a_region(message, is_global):
    error = from_operation("x", operation("QUOTA_EXCEEDED", message))

    assert isinstance(error, QuotaExceeded)
    assert error.is_global is is_global


HTTP = [
    (exceptions.NotFound("no"), "creating", ComputeError),
    (exceptions.Forbidden("no"), "x", PermissionDenied),
    (exceptions.Forbidden("no", errors=[{"reason": "quotaExceeded"}]), "x", QuotaExceeded),
    (
        exceptions.ServiceUnavailable("", errors=[{"reason": "insufficientCapacity"}]),
        "x",
        NoCapacity,
    ),
    (exceptions.BadRequest("no"), "x", ComputeError),
    (requests.ConnectionError("refused"), "x", ComputeError),
]


@pytest.mark.parametrize(("raised", "what", "kind"), HTTP)
def test_errors_of_a_call_are_translated(raised, what, kind):
    with pytest.raises(kind) as caught, translated(what):
        raise raised

    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{what}: ")
    assert caught.value.__cause__ is raised


NOT_OFFERED = [
    exceptions.BadRequest(
        "Invalid value for field 'resource.machineType': 'zones/z/machineTypes/a2-highgpu-1g'. "
        "Machine type with name 'a2-highgpu-1g' does not exist in zone 'z'.",
        errors=[{"reason": "invalid"}],
    ),
    exceptions.BadRequest("Accelerator type with name 'nvidia-l4' does not exist in zone 'z'."),
    exceptions.NotFound("The resource 'projects/p/zones/z/machineTypes/g2-x' was not found"),
    exceptions.NotFound("The resource 'projects/p/zones/z/acceleratorTypes/t' was not found"),
]


@pytest.mark.parametrize("raised", NOT_OFFERED)
def test_a_machine_that_a_zone_does_not_have_is_told_from_a_bad_request(raised):
    with pytest.raises(NotOffered), translated("creating instance 'x' in z"):
        raise raised


def not_found(message, **more):
    return exceptions.NotFound(message, **more)


SAID = {"errors": [{"reason": "notFound"}]}
PROOFS = [
    (not_found("The resource 'projects/p/zones/z/instances/i' was not found", **SAID), True),
    (not_found("The resource 'projects/p/zones/z/instances/i'", errors=[]), False),
    (not_found("<html>404 /zones/z/instances/i</html>"), False),
    (not_found("The resource 'projects/p' was not found", **SAID), False),
    (not_found("The resource 'projects/p/zones/z/instances/i-2' was not found", **SAID), False),
]


@pytest.mark.parametrize(("raised", "is_proof"), PROOFS)
def test_only_the_apis_own_404_of_this_instance_proves_it_gone(raised, is_proof):
    with pytest.raises(ComputeError) as caught, translated("reading zones/z/instances/i"):
        raise raised

    assert isinstance(caught.value, InstanceNotFound) is is_proof


def test_every_error_of_the_library_is_translated():
    kinds = {k for k in vars(exceptions).values() if isinstance(k, type)}
    for kind in kinds:
        if issubclass(kind, exceptions.GoogleAPICallError):
            with pytest.raises(ComputeError), translated("x"):
                raise kind("m")


TRANSIENT = [
    (exceptions.TooManyRequests("x"), True),
    (exceptions.InternalServerError("x"), True),
    (exceptions.BadGateway("x"), True),
    (exceptions.ServiceUnavailable("x"), True),
    (exceptions.GatewayTimeout("x"), True),
    (exceptions.Forbidden("x", errors=[{"reason": "rateLimitExceeded"}]), True),
    (requests.ConnectionError(), True),
    (requests.ReadTimeout(), True),
    (exceptions.Forbidden("x", errors=[{"reason": "quotaExceeded"}]), False),
    (exceptions.ServiceUnavailable("x", errors=[{"reason": "insufficientCapacity"}]), False),
    (exceptions.Forbidden("x"), False),
    (exceptions.NotFound("x"), False),
    (ValueError("x"), False),
]


@pytest.mark.parametrize(("error", "expected"), TRANSIENT)
def test_only_what_may_pass_is_tried_again(error, expected):
    assert is_transient(error) is expected


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (requests.ConnectionError("broken pipe"), True),
        (requests.Timeout("60 s"), True),
        (exceptions.ServiceUnavailable("503"), True),
        (exceptions.TooManyRequests("429"), False),
        (exceptions.Forbidden("403"), False),
        (google.auth.exceptions.RefreshError("reauthentication is needed"), False),
        (google.auth.exceptions.TransportError("no token"), False),
    ],
)
def test_what_may_have_had_an_effect_though_its_answer_did_not_come(error, may):
    assert may_have_effect(error) is may


def test_an_emulator_that_has_stopped_is_not_waited_for():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    rest = compute_rest(f"{url}/compute/v1/", retry_seconds=1e9)
    compute = Compute("p", endpoint=f"{url}/compute/v1/", retry_seconds=1e9)

    for call in (lambda: rest.get("reading it", "projects/p"), lambda: compute.get("z", "name")):
        with pytest.raises(ComputeError, match=f"nothing listens at {url} .*emulator start"):
            call()
