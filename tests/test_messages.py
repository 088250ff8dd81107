"""What a person is told at night: every failure of the lifecycle, word for word.

Each message says what was tried on which object, what came back, whether an instance still bills,
and the next command. The texts lie in ``golden/messages.txt``; after a change on purpose write them
anew, and read the diff: UPDATE_GOLDEN=1 pytest tests/test_messages.py
"""

from __future__ import annotations

import os
import re
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gce_backend import compute, errors
from gce_backend.agent.paths import RunPaths
from gce_backend.attempts import Attempts
from gce_backend.blueprint import Blueprint
from gce_backend.compute import Compute
from gce_backend.config import Settings, load_settings
from gce_backend.console import Console
from gce_backend.emulator import Emulator, Fault
from gce_backend.emulator.methods import operations
from gce_backend.ending import Ending
from gce_backend.errors import GceBackendError, StorageError
from gce_backend.follow import End, Limits, following_lost
from gce_backend.history import History
from gce_backend.instance import Agent
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import EndReason
from gce_backend.request import InstanceRequest, delete
from gce_backend.runner import Runner
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.submit import check_bucket
from gce_backend.summary import result_of

pytestmark = pytest.mark.flow  # a real emulator

RUN = "0123456789abcdef0123456789abcdef"
PATHS = RunPaths("mlflow-gce", RUN)
GOLDEN = Path(__file__).parent / "golden" / "messages.txt"
_DEADLINE = 4_000_000_000.0
_IMPATIENT = Limits(sync_seconds=0.0)


@dataclass
class Lab:
    """An emulated project, one run's bucket in it, and the client's parts that fail there."""

    emulator: Emulator
    storage: Storage
    home: Path
    patch: pytest.MonkeyPatch
    patience: float = 0.0  # seconds for which a call is repeated

    def settings(self, **parameters: str) -> Settings:
        zones = "[europe-west1-b,europe-west4-a]"
        given = {"gce.zones": zones, "gce.ssh.via": "none", **parameters}
        return load_settings(self.home, parameters=given)

    def submission(self, **more: Any) -> Submission:
        given: dict[str, Any] = {
            "run_id": RUN,
            "project": self.emulator.project,
            "zone": "europe-west1-b",
            "instance": f"mlflow-{RUN}-1",
            "bucket": self.storage.bucket,
            "paths": PATHS,
            "tracking_uri": "",
            "deadline": _DEADLINE,
            "created_at": 0.0,
        }
        return Submission(**{**given, **more})

    def compute(self) -> Compute:
        url = self.emulator.compute_url
        return Compute(self.emulator.project, endpoint=url, retry_seconds=self.patience)

    def fault(self, kind: str, method: str = "", **more: Any) -> None:
        self.emulator.inject(Fault(kind, method, times=None, **more))

    def ask(self, **parameters: str) -> Submission:
        """Ask for the run's instance."""
        request = InstanceRequest(
            self.settings(**parameters),
            Agent(self.storage.bucket, "agent.pyz", "0" * 64),
            PATHS,
            Store(),  # type: ignore[arg-type]
            Console(quiet=True),
            Interrupts(active=False),
            storage=self.storage,
        )
        request._compute = self.compute()
        return request.in_first_zone_with_room()

    def end(self, end: End, **more: Any) -> None:
        """Take the run to its end, as a client that follows does."""
        here = self.submission(**more)
        ending = Ending(
            here,
            self.storage,
            self.compute(),
            entered=lambda *_: None,
            try_to_write_end=lambda *_: None,
            console=Console(quiet=True),
        )
        ending.prove_and_delete(end, goes_on=False)


class Store:
    """An MLflow store, as far as a request needs it."""

    uri = "sqlite:///none"

    def set_tags(self, *_: object) -> None:
        pass

    def get_run(self, run_id: str) -> Any:
        info = types.SimpleNamespace(run_name="brave-bird")
        return types.SimpleNamespace(info=info, data=types.SimpleNamespace(tags={}))


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(boot_seconds=0.01, isolated=False, limited=False) as one:
        yield one


@pytest.fixture
def lab(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    emulator.create_bucket(bucket)
    for name, value in emulator.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_GCE_BUCKET", bucket)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(compute, "_DELETE_PAUSES", ())
    emulator.inject(Fault("no_startup_script", times=None))
    storage = Storage(bucket, project=emulator.project, retry_seconds=0)
    yield Lab(emulator, storage, tmp_path, monkeypatch)
    emulator.clear_faults()
    for each in emulator.instances():
        Compute(emulator.project, endpoint=emulator.compute_url).delete(
            each["zone"].rpartition("/")[2], each["name"]
        )


# ---------------------------------------------------------------------- how each comes about


def no_capacity(lab: Lab) -> None:
    lab.fault("no_capacity")
    lab.ask()


def internal_errors_everywhere(lab: Lab) -> None:
    lab.fault("operation_fails", "instances.insert")
    lab.ask()


def machine_not_offered(lab: Lab) -> None:
    lab.ask(**{"machine.machine_type": "n1-standard-3"})


def quota_of_a_region(lab: Lab) -> None:
    lab.fault("quota_region")
    lab.ask()


def quota_of_all_regions(lab: Lab) -> None:
    lab.fault("quota_global")
    lab.ask()


def no_permission_to_insert(lab: Lab) -> None:
    lab.fault("forbidden", "instances.insert")
    lab.ask()


def no_permission_after_a_lost_insert(lab: Lab) -> None:
    lab.patience = 10.0
    lab.emulator.inject(Fault("reply_lost_after", "instances.insert"))
    lab.fault("forbidden", "instances.insert")
    lab.fault("forbidden", "instances.delete")
    lab.ask()


def request_refused(lab: Lab) -> None:
    lab.ask(**{"gce.max_hours": "0.001", "gce.rescue_minutes": "0"})


def insert_without_an_end(lab: Lab) -> None:
    lab.patch.setattr(compute, "_INSERT_SECONDS", 0.3)
    lab.patch.setattr(operations, "_WAIT_SECONDS", 0.1)
    lab.emulator.inject(Fault("operation_stuck", "instances.insert"))
    lab.ask()


def api_away_at_the_insert(lab: Lab) -> None:
    lab.fault("unavailable", "instances.insert")
    lab.ask()


def name_is_taken(lab: Lab) -> None:
    lab.ask()
    with lab.patch.context() as patch:
        patch.setattr(compute.Compute, "get", lambda *_: {"labels": {"somebody": "else"}})
        lab.ask()


def delete_refused(lab: Lab) -> None:
    lab.ask()
    lab.fault("forbidden", "instances.delete")
    delete(lab.compute(), lab.submission())


def delete_refused_after_a_lost_insert(lab: Lab) -> None:
    lab.fault("reply_lost_after", "instances.insert")
    lab.fault("forbidden", "instances.delete")
    lab.ask()


def delete_without_an_effect(lab: Lab) -> None:
    lab.ask()
    lab.fault("operation_fails", "instances.delete")
    delete(lab.compute(), lab.submission())


def delete_without_an_end(lab: Lab) -> None:
    lab.ask()
    lab.patch.setattr(compute, "_DELETE_SECONDS", 0.3)
    lab.fault("operation_stuck", "instances.delete")
    delete(lab.compute(), lab.submission())


_UNVERIFIED = {
    "attempt": 1,
    "end_reason": "succeeded",
    "verified": False,
    "missing": ["gs://bucket/run/model.pt: not in the bucket"],
}


def results_unverified(lab: Lab) -> None:
    lab.ask()
    lab.end(End(_UNVERIFIED, EndReason.SUCCEEDED), ssh_via="external")


def results_unverified_without_ssh(lab: Lab) -> None:
    lab.ask()
    lab.end(End(_UNVERIFIED, EndReason.SUCCEEDED))


def results_unverified_and_instance_gone(lab: Lab) -> None:
    lab.end(End(_UNVERIFIED, EndReason.SUCCEEDED))


def manifest_missing(lab: Lab) -> None:
    lab.end(End({**_UNVERIFIED, "verified": True}, EndReason.SUCCEEDED))


def stopped_before_it_had_saved(lab: Lab) -> None:
    lab.ask()
    detail = f"instance 'mlflow-{RUN}-1' is TERMINATED, and it left no status"
    lab.end(End(None, EndReason.INSTANCE_LOST, detail, stopped=True))


def bucket_refuses_while_following(lab: Lab) -> None:
    lab.fault("forbidden", "storage.objects.get")
    try:
        lab.storage.read(PATHS.status)
    except StorageError as error:
        raise following_lost(lab.submission(), error) from error


def bucket_missing_at_submit(lab: Lab) -> None:
    missing = Storage("no-such-bucket", project=lab.emulator.project, retry_seconds=0)
    check_bucket(missing, "mlflow-gce")


def bucket_away_at_submit(lab: Lab) -> None:
    lab.fault("unavailable", "storage.objects.insert")
    check_bucket(lab.storage, "mlflow-gce")


def no_room_for_the_next_attempt(lab: Lab) -> None:
    settings = lab.settings()
    lab.storage.put_json(PATHS.spec, {"attempt": 1})
    Blueprint(settings, Agent(lab.storage.bucket, "agent.pyz", "0" * 64)).save(lab.storage, PATHS)
    lab.fault("no_capacity")
    attempts = Attempts(
        lab.storage,
        Store(),  # type: ignore[arg-type]
        History(lab.storage, PATHS),
        lab.compute(),
        endpoints=settings.endpoints,
        console=Console(quiet=True),
    )
    end = End(None, EndReason.PREEMPTED, "taken back", taken=True)
    attempts.next(lab.submission(), end, Interrupts(active=False))


def store_stays_away(lab: Lab) -> None:
    here = lab.submission(tracking_uri="http://127.0.0.1:9")
    endpoints = lab.settings().endpoints
    runner = Runner(here, endpoints=endpoints, console=Console(quiet=True), limits=_IMPATIENT)
    runner._write_last(End({}, EndReason.SUCCEEDED))


RAISED: dict[Callable[[Lab], None], type[GceBackendError]] = {
    no_capacity: errors.NoCapacity,
    internal_errors_everywhere: errors.InternalError,
    machine_not_offered: errors.NotOffered,
    quota_of_a_region: errors.QuotaExceeded,
    quota_of_all_regions: errors.QuotaExceeded,
    no_permission_to_insert: errors.PermissionDenied,
    no_permission_after_a_lost_insert: errors.CleanupError,
    request_refused: errors.ComputeError,
    insert_without_an_end: errors.OperationTimeout,
    api_away_at_the_insert: errors.ComputeError,
    name_is_taken: errors.AlreadyExists,
    delete_refused: errors.CleanupError,
    delete_refused_after_a_lost_insert: errors.CleanupError,
    delete_without_an_effect: errors.CleanupError,
    delete_without_an_end: errors.CleanupError,
    results_unverified: errors.ResultsUnverified,
    results_unverified_without_ssh: errors.ResultsUnverified,
    results_unverified_and_instance_gone: errors.ResultsUnverified,
    manifest_missing: errors.ResultsUnverified,
    stopped_before_it_had_saved: errors.ResultsUnverified,
    bucket_refuses_while_following: errors.FollowingLost,
    bucket_missing_at_submit: errors.StorageError,
    bucket_away_at_submit: errors.StorageError,
    no_room_for_the_next_attempt: errors.RunWaiting,
    store_stays_away: errors.TrackingError,
}
#: How a run may end whose instance is gone: what `mlflow run` and `attach` say then.
ENDS = {
    EndReason.EXITED_NONZERO: End({"exit_code": 3}, EndReason.EXITED_NONZERO, "exit code 3"),
    EndReason.CANCELLED: End({}, EndReason.CANCELLED, ""),
    EndReason.DEADLINE: End(None, EndReason.DEADLINE, "the instance's deadline has passed"),
    EndReason.STALLED: End({}, EndReason.STALLED, "no log, no metric, no CPU for 30 min"),
    EndReason.ENVIRONMENT_FAILED: End({}, EndReason.ENVIRONMENT_FAILED, "uv: no such package"),
    EndReason.AGENT_FAILED: End({}, EndReason.AGENT_FAILED, "OSError: no space left"),
    EndReason.BOOT_TIMEOUT: End(
        None, EndReason.BOOT_TIMEOUT, "the instance gave no sign of life in time"
    ),
    EndReason.PREEMPTED: End(None, EndReason.PREEMPTED, "Compute Engine took it back"),
    EndReason.INSTANCE_LOST: End(None, EndReason.INSTANCE_LOST, "somebody deleted it"),
    EndReason.SUBMIT_FAILED: End(None, EndReason.SUBMIT_FAILED, "it was never created"),
}
#: The other reasons end in an error of the table above, or in no message at all.
BY_ERROR = {
    EndReason.SUCCEEDED,
    EndReason.RESULTS_UNVERIFIED,
    EndReason.NO_CAPACITY,
    EndReason.QUOTA_EXCEEDED,
    EndReason.REFUSED,
}
_TOLD_ELSEWHERE = {
    errors.ConfigError,  # nothing exists yet: tests/test_config.py
    errors.ProjectError,
    errors.InstanceNotFound,  # an answer, and no failure
    errors.ChangedMeanwhile,  # does not get out of Compute: tests/test_compute.py
    errors.SshError,  # changes nothing about a run: tests/ssh
}

_OBJECT = re.compile(rf"{RUN}|no-such-bucket|bucket 'BUCKET'|n1-standard")
_BILLS = re.compile(r"bill|No instance exists|has been deleted|[Nn]othing was (lost|started)")
_COMMAND = re.compile(r"(mlflow-gce|gcloud [a-z]+|mlflow) [a-z-]+|-P machine=|[Tt]ry again")


@pytest.mark.parametrize("fail", RAISED, ids=lambda fail: fail.__name__)
def test_a_failure_says_what_was_tried_what_came_back_what_bills_and_what_to_do(
    lab: Lab, fail: Callable[[Lab], None]
) -> None:
    with pytest.raises(RAISED[fail]) as caught:
        fail(lab)

    _hold(fail.__name__, str(caught.value), lab)


@pytest.mark.parametrize("reason", ENDS, ids=lambda reason: reason.value)
def test_an_end_says_how_it_came_that_nothing_bills_and_where_to_look(
    lab: Lab, reason: EndReason
) -> None:
    lab.storage.put(PATHS.log(1), b"step 1\nstep 2\n")

    told = result_of(lab.submission(), ENDS[reason], "", lab.storage)

    assert told.exit_code != 0
    _hold(f"run ended: {reason.value}", told.message, lab)


def test_every_error_and_every_end_has_its_text_here() -> None:
    kinds = {kind for kind in vars(errors).values() if _is_error(kind)}
    told = set(RAISED.values())
    elsewhere = {kind for kind in kinds if issubclass(kind, tuple(_TOLD_ELSEWHERE))}
    assert {kind for kind in kinds if not told & _family(kind)} <= elsewhere
    assert set(ENDS) | BY_ERROR == set(EndReason)


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, GceBackendError)


def _family(kind: type[GceBackendError]) -> set[type[GceBackendError]]:
    return {kind, *kind.__subclasses__()}


def _hold(name: str, text: str, lab: Lab) -> None:
    """The text is the golden one, and has its four parts."""
    text = _settled(text, lab)
    golden = _read()
    if os.environ.get("UPDATE_GOLDEN"):
        golden[name] = text
        GOLDEN.write_text("\n".join(f"=== {key}\n{golden[key]}\n" for key in sorted(golden)))
    assert golden.get(name) == text
    assert _OBJECT.search(text), "names no object"
    assert _BILLS.search(text), "does not say what bills"
    assert _COMMAND.search(text), "does not say what to do"


def _read() -> dict[str, str]:
    if not GOLDEN.exists():
        return {}
    parts = GOLDEN.read_text().split("=== ")[1:]
    return {name: text.strip("\n") for name, _, text in (part.partition("\n") for part in parts)}


def _settled(text: str, lab: Lab) -> str:
    """Without what differs each time."""
    text = text.replace(lab.storage.bucket, "BUCKET")
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DEADLINE", text)
    text = re.sub(r"operation-[\w-]+", "OPERATION", text)
    text = re.sub(r"requestId=[\w-]+", "requestId=ID", text)
    text = re.sub(r"probe-[0-9a-f]{32}", "probe-ID", text)
    text = re.sub(r"\bat 0x[0-9a-f]+", "at ADDRESS", text)
    return re.sub(r"127\.0\.0\.1:\d\d+", "HOST", text)
