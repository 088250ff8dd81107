"""The journal brought to a real tracking server by the agent, against all kinds of odds."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from journals import export

from gce_backend import facts
from gce_backend.agent.errors import ServerAway
from gce_backend.agent.forward_server import Server
from gce_backend.agent.refusals import REFUSED_TAG
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.sync import JournalApplier
from gce_backend.tracking import Tracking

from .cloud import Gcs, wait_for
from .front import Front
from .instance import TestInstance
from .tracking_server import CREATED_AT, USD_PER_HOUR, ForwardedRun, ServerInProcess, make_run

pytestmark = [
    pytest.mark.flow,  # real processes and servers
    pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated"),  # MLflow's own
]

TRAINER = Path(__file__).with_name("forwarded_trainer.py").read_text()
SECRET = "projects/test/secrets/mlflow/versions/latest"
TOKEN = "t0ken-of-the-tracking-server"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[ServerInProcess]:
    with pytest.MonkeyPatch.context() as patch:
        running = ServerInProcess(tmp_path_factory.mktemp("server"), empty_store, patch)
        yield running
        running.stop()


@pytest.fixture
def door(server: ServerInProcess) -> Iterator[Front]:
    """The server as the agent reaches it: over a proxy that wants a token and may refuse."""
    front = Front(server.url)
    front.authorization = f"Bearer {TOKEN}"
    yield front
    front.stop()


@pytest.fixture
def trained(
    server: ServerInProcess,
    instance: TestInstance,
    gcs: Gcs,
    monkeypatch: pytest.MonkeyPatch,
) -> ForwardedRun:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    instance.plane.secrets[SECRET] = f"{TOKEN}\n"
    return make_run(server, instance)


def start(
    trained: ForwardedRun, door: Front, command: str = "python train.py", attempt: int = 1
) -> None:
    secret = {"name": SECRET, "kind": "token"}
    trained.submit(command, {"train.py": TRAINER}, door.url, secret, attempt=attempt)
    trained.instance.start()


def say(trained: ForwardedRun, word: str) -> None:
    (trained.instance.state / "work" / word).touch()


def applier(trained: ForwardedRun, uri: str) -> JournalApplier:
    storage = Storage(trained.instance.bucket.name, project="test")
    return JournalApplier(storage, trained.instance.paths, tracking_uri=uri, run_id=trained.run_id)


def as_by_a_client(trained: ForwardedRun, copy: str, status: Any) -> dict[str, Any]:
    """What a client makes of the same journal, in a copy of the store from before."""
    sync = applier(trained, copy)
    sync.finish()
    facts.record(Tracking(copy), _submission(trained, copy, status["attempt"]), status)
    sync.set_final_status("FINISHED", round(status["ended_at"] * 1000))
    return export(copy, trained.run_id)


def _submission(trained: ForwardedRun, store: str, attempt: int) -> Submission:
    return Submission(
        run_id=trained.run_id,
        project="test",
        zone="europe-west1-b",
        instance="mlrun-test",
        bucket=trained.instance.bucket.name,
        paths=trained.instance.paths,
        tracking_uri=store,
        deadline=0,
        created_at=CREATED_AT,
        usd_per_hour=USD_PER_HOUR,
        attempt=attempt,
    )


def test_the_server_ends_as_by_a_client_whatever_happens_meanwhile(
    trained: ForwardedRun, door: Front, tmp_path: Path
) -> None:
    """Replies are lost, the agent is killed twice, and the server is down for the middle."""
    instance = trained.instance
    copy = trained.copy_store(tmp_path / "copy.db")
    lost = {"runs/create", "logged-models", "runs/log-batch", "runs/outputs"}

    def lose_once(method: str, path: str) -> bool:
        name = path.removeprefix("/api/2.0/mlflow/")
        if method != "GET" and name in lost:
            lost.remove(name)
            return True
        return False

    door.lose_reply = lose_once
    start(trained, door)
    wait_for(lambda: trained.applied >= 1, "the first segment is on the server")
    assert trained.run.info.status == "RUNNING"
    instance.kill()
    door.refuse = lambda method, path: 503
    instance.start()
    say(trained, "two")
    wait_for(lambda: "two\n" in instance.log, "the training goes on without the server")
    instance.kill()
    instance.start()
    door.refuse = lambda method, path: None
    say(trained, "three")

    status = instance.wait()

    assert status["verified"] and status["forwarded"], instance.log
    assert lost == set()
    assert trained.applied == status["journal_segments"]
    assert trained.run.info.status == "FINISHED"
    assert trained.run.data.tags["gce.end_reason"] == "succeeded"
    assert export(trained.server.uri, trained.run_id) == as_by_a_client(trained, copy, status)
    names = _check_files(trained)
    manifest = instance.bucket.json(instance.paths.manifest)
    assert names < {entry["name"] for entry in manifest["objects"]}
    _check_poison(trained, copy)
    _check_token_is_nowhere(trained)


def _check_files(trained: ForwardedRun) -> set[str]:
    """They lie where the server says, and nothing of the manifest is missing; gives the model's."""
    bucket, client = trained.instance.bucket, trained.client
    (model,) = client.search_logged_models([trained.experiment_id])
    (child,) = client.search_runs([trained.experiment_id], "tags.mlflow.parentRunId != ''")
    root = f"gs://{bucket.name}/"
    where = model.artifact_location.removeprefix(root)
    text = bucket.get(f"{where}/MLmodel").decode()
    assert text == f"artifact_path: {model.artifact_location}\nmodel_id: {model.model_id}\n"
    assert len(bucket.get(f"{where}/data/weights.bin")) == 100_000
    assert bucket.get(f"{child.info.artifact_uri.removeprefix(root)}/child.txt")
    assert str(model.status) == "READY"
    assert trained.run.data.tags["best"] == child.info.run_id
    made = [r["provisional_id"] for r in trained.instance.journal if "provisional_id" in r]
    assert [name for name in bucket.names() if any(one in name for one in made)] == []
    manifest = bucket.json(trained.instance.paths.manifest)
    assert Storage(bucket.name, project="test").verify(manifest) == []
    return {f"{where}/MLmodel", f"{where}/data/weights.bin"}


def _check_poison(trained: ForwardedRun, copy: str) -> None:
    from mlflow.tracking import MlflowClient

    account = json.loads(trained.run.data.tags[REFUSED_TAG])
    by_client = json.loads(MlflowClient(copy).get_run(trained.run_id).data.tags[REFUSED_TAG])
    assert account["count"] == by_client["count"] == 1
    assert account["first"][0]["record"] == by_client["first"][0]["record"]
    assert "500" in account["first"][0]["reason"]  # characters a dataset's name may have
    assert "the tracking server refuses POST runs/log-inputs" in trained.instance.log
    bucket = trained.instance.bucket
    kept = [bucket.json(name) for name in bucket.names() if "/artifacts/gce-refused/" in name]
    assert kept and all("d" * 600 in entry["content"] for (entry,) in kept)


def _check_token_is_nowhere(trained: ForwardedRun) -> None:
    instance = trained.instance
    files = [file.read_bytes() for file in instance.root.rglob("*") if file.is_file()]
    objects = [instance.bucket.get(name) for name in instance.bucket.names()]
    assert not [data for data in [*files, *objects] if TOKEN.encode() in data]


def test_a_server_that_stays_away_costs_seconds_and_a_client_brings_the_rest(
    trained: ForwardedRun, door: Front, tmp_path: Path
) -> None:
    instance = trained.instance
    copy = trained.copy_store(tmp_path / "copy.db")
    start(trained, door)
    wait_for(lambda: trained.applied >= 1, "the first segment is on the server")
    door.refuse = lambda method, path: 502
    say(trained, "two")
    wait_for(lambda: "two\n" in instance.log, "the training goes on without the server")
    say(trained, "three")

    status = instance.wait()

    assert status["verified"] and not status["forwarded"]
    assert status["written_at"] - status["ended_at"] < 20
    assert f"mlflow-gce sync {trained.run_id}" in instance.log
    assert (trained.applied, trained.run.info.status) != (status["journal_segments"], "FINISHED")
    door.refuse = lambda method, path: None
    sync = applier(trained, trained.server.uri)
    sync.finish()
    facts.record(Tracking(trained.server.uri), _submission(trained, trained.server.uri, 1), status)
    sync.set_final_status("FINISHED", round(status["ended_at"] * 1000))
    assert export(trained.server.uri, trained.run_id) == as_by_a_client(trained, copy, status)


def test_a_run_that_was_preempted_is_brought_by_its_next_attempt(
    trained: ForwardedRun, door: Front, tmp_path: Path
) -> None:
    """The first one's journal and files are in the bucket alone, and its end is not the run's."""
    instance = trained.instance
    copy = trained.copy_store(tmp_path / "copy.db")
    door.refuse = lambda method, path: 503
    start(trained, door)
    wait_for(lambda: "one\n" in instance.log, "the training has begun")
    say(trained, "two")
    wait_for(lambda: "two\n" in instance.log, "the model is logged")
    instance.plane.preempt()
    assert instance.wait()["end_reason"] == "preempted"
    assert trained.run.info.status == "SCHEDULED"
    instance.plane.preempted = False
    shutil.rmtree(instance.state)
    door.refuse = lambda method, path: None
    start(trained, door, "true", attempt=2)

    status = instance.wait()

    assert status["verified"] and status["forwarded"], instance.log
    assert trained.run.info.status == "FINISHED"
    assert export(trained.server.uri, trained.run_id) == as_by_a_client(trained, copy, status)
    _check_files(trained)


@pytest.mark.parametrize("page", [b"<html>", b"[1]", b"7"])
def test_a_page_in_place_of_the_servers_answer_is_the_server_being_away(page: bytes) -> None:
    server = Server("http://localhost", "1", cast(Any, None))

    with pytest.raises(ServerAway, match="this is not MLflow's answer"):
        server._judge("GET", "runs/get", 200, page)


def test_a_secret_that_may_not_be_read_is_told_and_stops_nothing(
    trained: ForwardedRun, door: Front
) -> None:
    instance = trained.instance
    instance.plane.secrets[SECRET] = None
    start(trained, door)
    say_both = ("two", "three")
    wait_for(lambda: "one\n" in instance.log, "the training has begun")
    for word in say_both:
        say(trained, word)

    started = time.time()
    status = instance.wait()

    command = (
        "gcloud secrets add-iam-policy-binding mlflow --project test --member "
        "serviceAccount:agent@test.example --role roles/secretmanager.secretAccessor"
    )
    assert status["verified"] and not status["forwarded"]
    assert time.time() - started < 15
    assert command in instance.log
    tags = {r["body"]["key"]: r["body"]["value"] for r in instance.journal if _is_tag(r)}
    assert command in tags["gce.forward.trouble"]
    assert door.requests == []


def _is_tag(record: dict[str, Any]) -> bool:
    return bool(record["path"] == "runs/set-tag")
