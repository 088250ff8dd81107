"""Every fault of the APIs at every call, generated from the two lists.

The client's own code runs in this process, against the emulator and an agent that really works.
Each cell says how the run ends, in which zone, and counts the instances that ever were: never two
alive at once for one attempt, and none at the end. A cell that cannot be has a rule that says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatch

import pytest
import requests
from conftest import PROJECTS, Cloud, environment

from gce_backend import compute as compute_module
from gce_backend.compute import Compute
from gce_backend.config import read_endpoints
from gce_backend.console import Console
from gce_backend.emulator import Fault
from gce_backend.emulator.faults import FaultKind
from gce_backend.errors import CleanupError, GceBackendError
from gce_backend.interrupts import Interrupts
from gce_backend.reaper import Reaper
from gce_backend.runner import Runner
from gce_backend.submit import Order, submit

ZONES = ("europe-west1-b", "europe-west1-c", "europe-west4-a")
PARAMETERS = {"gce.zones": f"[{','.join(ZONES)}]", "gce.ssh.via": "none"}
PASSING = ["rate_limit_exceeded", "too_many_requests", "internal_error", "bad_gateway"]
PASSING += ["unavailable", "reply_lost_before", "reply_lost_after", "slow"]
REFUSING = ["forbidden", "quota_exceeded", "insufficient_capacity"]
OPERATION = ["no_capacity", "no_capacity_with_details", "quota_region", "quota_global"]
OPERATION += ["operation_fails", "operation_slow", "operation_stuck"]
CALLS = ["instances.insert", "instances.get", "instances.aggregatedList", "instances.delete"]
CALLS += ["zoneOperations.*"]
BUCKET_CALLS = ["storage.objects.insert", "storage.objects.get", "storage.objects.list"]
CALLS += [*BUCKET_CALLS, "storage.objects.delete"]


@dataclass(frozen=True)
class Expected:
    """What comes of a cell.

    Args:
        reason: how the run ends; "" where there is no run: nothing was asked for.
        zone: where its instance was.
        instances: how many ever were, one of these.
        error: what the client says; "" for nothing.
        left: an instance is still there when the client has ended, and said so.
        always: the fault is there until the client has ended, and not for one call.
    """

    reason: str = "succeeded"
    zone: str = ZONES[0]
    instances: tuple[int, ...] = (1,)
    error: str = ""
    left: bool = False
    always: bool = False


NO_BUCKET = Expected("", instances=(0,), error="cannot use bucket", always=True)
SPECIAL = {
    ("instances.insert", "forbidden"): Expected(
        "refused", instances=(0,), error="roles/compute.instanceAdmin.v1", always=True
    ),
    ("instances.insert", "quota_exceeded"): Expected(zone=ZONES[2]),
    ("instances.insert", "insufficient_capacity"): Expected(zone=ZONES[1]),
    ("instances.insert", "no_capacity"): Expected(zone=ZONES[1]),
    ("instances.insert", "no_capacity_with_details"): Expected(zone=ZONES[1]),
    ("instances.insert", "quota_region"): Expected(zone=ZONES[2]),
    ("instances.insert", "quota_global"): Expected(
        "quota_exceeded", instances=(0,), error="in any region"
    ),
    ("instances.insert", "operation_fails"): Expected(zone=ZONES[1]),
    ("instances.get", "forbidden"): Expected(error="cannot delete instance", always=True),
    ("instances.aggregatedList", "forbidden"): Expected(error="listing the instances", always=True),
    ("instances.delete", "forbidden"): Expected(
        error="gcloud compute instances delete", left=True, always=True
    ),
    ("instances.delete", "operation_stuck"): Expected(
        error="it still exists", left=True, always=True
    ),
    ("zoneOperations.*", "forbidden"): Expected(
        # deleted at once, and so perhaps before it ever ran
        "submit_failed",
        instances=(0, 1),
        error="reading its operation",
        always=True,
    ),
    ("storage.objects.insert", "forbidden"): NO_BUCKET,
    ("storage.objects.get", "forbidden"): replace(NO_BUCKET, error="cannot"),
    ("storage.objects.list", "forbidden"): NO_BUCKET,
    ("storage.objects.delete", "forbidden"): NO_BUCKET,
}


def impossible(method: str, kind: str) -> str:
    """Why a cell cannot be; "" for one that can."""
    if method.startswith("storage.") and kind in ("rate_limit_exceeded", *REFUSING[1:]):
        return "Compute Engine's words: Cloud Storage says 429, and has no capacity to run out of"
    if kind == "operation_stuck" and method == "instances.insert":
        return "it takes a quarter of an hour: the random histories have it, on their own clock"
    if kind in OPERATION and method not in ("instances.insert", "instances.delete"):
        return "it makes no operation"
    if kind in (*REFUSING[1:], *OPERATION[:4]) and method != "instances.insert":
        return "only what is to be made can be too much"
    return ""


def _moments(method: str) -> list[str]:
    """When the fault is set: the bucket's for the submission, and for what comes after it."""
    return ["submitting", "following"] if method in BUCKET_CALLS else ["submitting"]


CELLS = [
    pytest.param(method, kind, when, id=f"{method}, {kind}, {when}")
    for method in CALLS
    for kind in (*PASSING, *REFUSING, *OPERATION)
    for when in _moments(method)
    if not impossible(method, kind) and (when == "submitting" or kind in PASSING)
]


def test_every_fault_meets_every_call_or_a_rule_says_why_not():
    kinds = [*PASSING, *REFUSING, *OPERATION]
    left_out = [(m, k) for m in CALLS for k in kinds if impossible(m, k)]

    assert len({(c.values[0], c.values[1]) for c in CELLS}) == len(CALLS) * len(kinds) - len(
        left_out
    )
    of_guests = {"no_ssh", "no_startup_script", "network_cut"}
    assert set(kinds) == {kind.value for kind in FaultKind} - of_guests


@dataclass
class Story:
    """One run from its submission to its end, and a reap after it, in this process."""

    cloud: Cloud
    fault: Fault
    when: str
    errors: list[GceBackendError] = field(default_factory=list)

    def play(self) -> None:
        if self.when == "submitting":
            self.cloud.emulator.inject(self.fault)
        try:
            self._submit_and_follow()
            list(self._reaper().run())
        except GceBackendError as error:
            self.errors.append(error)

    def _submit_and_follow(self) -> None:
        order = Order(
            uri=str(PROJECTS / "gated"),
            entry_point="main",
            tracking_uri=self.cloud.tracking_uri,
            experiment_id="0",
            parameters=PARAMETERS,
            env_manager="local",
        )
        console, interrupts = Console(quiet=True), Interrupts(active=False)
        submission, settings = submit(order, console, interrupts)
        if self.when == "following":
            self.cloud.emulator.inject(self.fault)
        Runner(submission, endpoints=settings.endpoints, console=console).follow(interrupts)

    def clean_up(self) -> list[str]:
        """What a reap does once the fault is over: a deed for each instance."""
        self.cloud.emulator.clear_faults()
        return [outcome.deed for outcome in self._reaper().run()]

    def _reaper(self) -> Reaper:
        return Reaper(self.cloud.emulator.project, endpoint=read_endpoints().compute)

    def has_struck(self) -> bool:
        """Whether the fault met its call."""
        url = self.cloud.emulator.compute_url.replace("compute/v1/", "_emulator/faults")
        pending = requests.get(url, timeout=10).json()
        return not pending if self.fault.times else self._failed() > 0

    def _failed(self) -> int:
        calls = [c for c in self.cloud.emulator.calls if fnmatch(c.name, self.fault.method)]
        if self.fault.kind.startswith("operation"):
            return len(calls)
        return sum(c.status == 403 for c in calls)

    def lives(self) -> Iterator[tuple[str, float, float]]:
        """(zone, from, to) of every instance that ever was, by Compute Engine's own record."""
        if not (runs := self.cloud.inserts()):
            return
        name = str(runs[0].body["name"])
        compute = Compute(self.cloud.emulator.project, endpoint=self.cloud.emulator.compute_url)
        for zone in ZONES:
            done = [op for op in compute.operations_on(zone, name) if _worked(op)]
            ends = [_moment(op, "endTime") for op in done if op["operationType"] != "insert"]
            for made in (op for op in done if op["operationType"] == "insert"):
                began = _moment(made, "startTime")
                yield zone, began, min((e for e in ends if e > began), default=float("inf"))


def _worked(operation) -> bool:
    done = operation["status"] == "DONE" and "error" not in operation
    return done and operation["operationType"] in ("insert", "delete")


def _moment(operation, key: str) -> float:
    return datetime.fromisoformat(operation[key]).timestamp()


@pytest.mark.matrix(cells=5)
@pytest.mark.parametrize(("method", "kind", "when"), CELLS)
def test_one_instance_at_a_time_and_none_in_the_end(cloud, monkeypatch, method, kind, when):
    expected = SPECIAL.get((method, kind), Expected())
    if kind == "operation_stuck":  # ten minutes, shortened
        monkeypatch.setattr(compute_module, "_DELETE_SECONDS", 3.0)
    resource = f"{cloud.bucket}*" if method.startswith("storage.") else "*"
    times = None if expected.always else 1
    story = Story(cloud, Fault(kind, method, resource, times=times, seconds=1.0), when)

    with environment(cloud.environ):
        story.play()

        told = "\n".join(str(error) for error in story.errors)
        assert story.has_struck(), f"the fault met no call: {told}"
        assert bool(story.errors) is bool(expected.error), told
        assert expected.error in told
        _check_what_is_left(story, expected)
        cloud.emulator.clear_faults()
        lives = list(story.lives())
        assert len(lives) in expected.instances, lives
        for (_, _, gone), (_, made, _) in zip(lives, sorted(lives)[1:], strict=False):
            assert gone <= made, f"two at once: {lives}"
    _check_run(cloud, expected)


def _check_what_is_left(story: Story, expected: Expected) -> None:
    emulator = story.cloud.emulator
    if not expected.left:
        assert emulator.instances() == []
        return
    (instance,) = emulator.instances()
    (error,) = story.errors
    assert isinstance(error, CleanupError)
    assert (error.instance, error.zone) == (instance["name"], ZONES[0])
    assert story.clean_up() == ["deleted"], "proven, so a reap deletes it"
    assert emulator.instances() == []


def _check_run(cloud: Cloud, expected: Expected) -> None:
    if not expected.reason:
        assert cloud.inserts() == []
        return
    run = cloud.only_run()
    tags = run.data.tags
    assert tags["gce.end_reason"] == expected.reason
    assert (run.info.status == "FINISHED") is (expected.reason == "succeeded")
    if expected.reason == "succeeded":
        assert tags["gce.zone"] == expected.zone
        losses = cloud.client.get_metric_history(run.info.run_id, "loss")
        assert [m.step for m in losses] == [1, 2], "one history, each point once"
        assert cloud.read(f"{run.info.artifact_uri.split('/', 3)[3]}/result.txt") == b"done\n"
