"""Zone after zone, machine after machine: what each refusal leads to, and what is left behind."""

import types

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.config import load_settings
from gce_backend.console import Console
from gce_backend.errors import (
    AlreadyExists,
    ComputeError,
    InternalError,
    NoCapacity,
    NotOffered,
    OperationTimeout,
    PermissionDenied,
    QuotaExceeded,
)
from gce_backend.history import History
from gce_backend.instance import Agent
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import Phase
from gce_backend.request import InstanceRequest

RUN = "0123456789abcdef0123456789abcdef"
PATHS = RunPaths("mlflow-gce", RUN)
ZONES = "[europe-west1-b,europe-west1-c,europe-west4-a]"


class Answers:
    """Compute Engine, as far as a request asks it: an answer for each (machine type, zone)."""

    def __init__(self, answers):
        self.answers = answers
        self.asked, self.deleted = [], []

    def insert(self, zone, body):
        machine = body["machineType"].rpartition("/")[2]
        self.asked.append((machine, zone))
        answer = self.answers.get((machine, zone)) or self.answers.get(zone)
        if answer is not None:
            raise answer

    def delete(self, zone, name):
        self.deleted.append(zone)


class Store:
    uri = "sqlite:///none"

    def __init__(self):
        self.tags = {}

    def set_tags(self, run_id, tags):
        self.tags.update(tags)

    def get_run(self, run_id):
        return types.SimpleNamespace(info=types.SimpleNamespace(run_name="brave-bird"))


@pytest.fixture
def asking(storage, tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "demo-project")
    monkeypatch.setenv("MLFLOW_GCE_BUCKET", storage.bucket)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")

    def make(answers, *, avoid="", attempt=1, **parameters):
        given = {"gce.zones": ZONES, "gce.ssh.via": "none", **parameters}
        settings = load_settings(tmp_path, parameters=given)
        request = InstanceRequest(
            settings,
            Agent(storage.bucket, "agent.pyz", "0" * 64),
            PATHS,
            Store(),
            Console(quiet=True),
            Interrupts(active=False),
            attempt=attempt,
            avoid=avoid,
            storage=storage,
        )
        request._compute = Answers(answers)
        return request

    return make


FULL = NoCapacity("the zone is full")


def zones_asked(request):
    return [zone for _, zone in request._compute.asked]


def test_a_full_zone_leads_to_the_next_and_is_left_empty(asking, storage):
    request = asking({"europe-west1-b": FULL, "europe-west1-c": FULL})

    found = request.in_first_zone_with_room()

    assert found.zone == "europe-west4-a"
    assert request._compute.deleted == ["europe-west1-b", "europe-west1-c"]
    assert request._tracking.tags["gce.zone"] == "europe-west4-a"
    assert not storage.exists(PATHS.cancel)
    first = History(storage, PATHS).read()[0]
    assert (first.attempt, first.phase, first.zone) == (1, Phase.CREATING, "europe-west1-b")


def test_a_quota_of_a_region_leads_to_the_next_region(asking):
    request = asking({"europe-west1-b": QuotaExceeded("CPUS in region europe-west1")})

    assert request.in_first_zone_with_room().zone == "europe-west4-a"
    assert zones_asked(request) == ["europe-west1-b", "europe-west4-a"]


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (
            QuotaExceeded("GPUS_ALL_REGIONS", is_global=True),
            QuotaExceeded,
            "gcloud compute project-info describe --project demo-project",
        ),
        (PermissionDenied("403 forbidden"), PermissionDenied, "roles/compute.instanceAdmin.v1"),
        (ComputeError("400 invalid field"), ComputeError, "400 invalid field"),
    ],
)
def test_what_no_zone_would_answer_otherwise_ends_it_at_once(asking, storage, answer, kind, told):
    request = asking({"europe-west1-b": answer})

    with pytest.raises(kind) as caught:
        request.in_first_zone_with_room()

    assert told in str(caught.value)
    assert zones_asked(request) == ["europe-west1-b"]
    assert not storage.exists(PATHS.cancel), "a refusal leaves nothing that could come late"


def test_when_every_zone_is_out_the_next_machine_of_the_list_is_asked_for(asking):
    request = asking(
        {("n1-standard-4", zone): FULL for zone in ZONES[1:-1].split(",")},
        machine="[n1-standard-4,n1-standard-2]",
    )

    request.in_first_zone_with_room()

    machines = [machine for machine, _ in request._compute.asked]
    assert machines == ["n1-standard-4"] * 3 + ["n1-standard-2"]
    assert request._tracking.tags["gce.machine_type"] == "n1-standard-2"


def test_nowhere_tells_every_answer_and_the_quotas_own_command(asking):
    quota = QuotaExceeded("Quota 'CPUS' exceeded in region europe-west4")
    request = asking({"europe-west1-b": FULL, "europe-west1-c": FULL, "europe-west4-a": quota})

    with pytest.raises(QuotaExceeded) as caught:
        request.in_first_zone_with_room()

    assert "gcloud compute regions describe europe-west4" in str(caught.value)
    assert str(caught.value).count("the zone is full") == 2
    assert "No instance exists" in str(caught.value)


NONE_HERE = NotOffered("Machine type with name 'n1-standard-2' does not exist in zone 'z'.")


def test_a_zone_without_the_machine_is_skipped(asking, capsys):
    request = asking({"europe-west1-b": NONE_HERE})

    assert request.in_first_zone_with_room().zone == "europe-west1-c"
    assert request._compute.deleted == [], "nothing was made"
    assert "does not exist in zone 'z'.; trying the next zone" in capsys.readouterr().err


def test_a_machine_that_no_zone_has_stops_and_says_where_to_look(asking):
    request = asking(dict.fromkeys(ZONES[1:-1].split(","), NONE_HERE))

    with pytest.raises(NotOffered) as caught:
        request.in_first_zone_with_room()

    assert str(caught.value).startswith("no zone offers n1-standard-2. No instance exists.")
    assert str(caught.value).count("does not exist in zone 'z'") == 3
    assert "gcloud compute machine-types list --filter 'name=n1-standard-2'" in str(caught.value)


def test_a_full_zone_beside_one_without_the_machine_may_have_room_later(asking):
    request = asking({"europe-west1-b": NONE_HERE, "europe-west1-c": FULL, "europe-west4-a": FULL})

    with pytest.raises(NoCapacity, match="no zone has room"):
        request.in_first_zone_with_room()


def test_an_internal_error_leads_to_the_next_zone_and_forbids_no_later_instance(asking, storage):
    request = asking({"europe-west1-b": InternalError("INTERNAL_ERROR: Internal error.")})

    assert request.in_first_zone_with_room().zone == "europe-west1-c"
    assert request._compute.deleted == ["europe-west1-b"]
    assert not storage.exists(PATHS.cancel), "the next zone's instance would end itself"


def test_internal_errors_everywhere_are_told_as_the_apis_own(asking):
    broken = InternalError("INTERNAL_ERROR: Internal error.")
    request = asking(dict.fromkeys(ZONES[1:-1].split(","), broken))

    with pytest.raises(InternalError, match="did not make it") as caught:
        request.in_first_zone_with_room()

    assert caught.value.transient
    assert str(caught.value).count("INTERNAL_ERROR") == 3


def test_a_further_attempt_asks_elsewhere_first_under_a_name_of_its_own(asking):
    request = asking({}, avoid="europe-west1-b", attempt=2)

    found = request.in_first_zone_with_room()

    assert (found.zone, found.instance) == ("europe-west1-c", f"mlflow-{RUN}-2")
    assert request._tracking.tags["gce.attempt"] == "2"


def test_an_insert_without_an_answer_is_deleted_and_one_that_comes_late_ends_itself(
    asking, storage
):
    lost = ComputeError("Compute Engine did not answer")
    lost.transient = True
    for error in (lost, OperationTimeout("not ended after 900 s"), KeyboardInterrupt()):
        storage.delete(PATHS.cancel)
        request = asking({"europe-west1-b": error})

        with pytest.raises(type(error)):
            request.in_first_zone_with_room()

        assert request._compute.deleted == ["europe-west1-b"]
        assert storage.exists(PATHS.cancel)
        assert zones_asked(request) == ["europe-west1-b"]


def test_somebody_elses_instance_of_the_name_is_left_alone(asking):
    request = asking({"europe-west1-b": AlreadyExists("409")})

    with pytest.raises(AlreadyExists):
        request.in_first_zone_with_room()

    assert request._compute.deleted == []
