"""Journals from the bucket into MLflow stores: everything, once, whatever happens meanwhile."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from journals import PREFIX, Record, SyncedRun, export, make_run, recording
from mlflow_server import MlflowServer

from gce_backend.agent.entries import ENTRIES
from gce_backend.agent.records import APPLIED_TAG, ID_TAG, OF_TAG, Refused
from gce_backend.agent.refusals import DIRECTORY, REFUSED_TAG
from gce_backend.console import Console
from gce_backend.errors import TrackingError
from gce_backend.provisional import ProvisionalIds
from gce_backend.replay import Replay
from gce_backend.run_store import RunStore, brief_retries
from gce_backend.storage import Storage
from gce_backend.sync import JournalApplier
from gce_backend.urls import without_credentials

pytestmark = pytest.mark.flow  # real processes and servers


@pytest.fixture
def run(tmp_path: Path, empty_store: Path, storage: Storage) -> SyncedRun:
    return make_run(tmp_path, empty_store, storage)


def applier(run: SyncedRun, uri: str | None = None) -> JournalApplier:
    return JournalApplier(run.storage, run.paths, tracking_uri=uri or run.uri, run_id=run.run_id)


def client(run: SyncedRun) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=run.uri)


def record(run: SyncedRun, path: str, body: dict[str, Any], **more: Any) -> Record:
    body = {"run_id": run.run_id, **body}
    return {"seq": 0, "at": 1_764_000_000_123, "path": path, "method": "POST", "body": body, **more}


def metric(run: SyncedRun, key: str, value: float, step: int) -> Record:
    body = {"key": key, "value": value, "timestamp": 1_764_000_000_000 + step, "step": step}
    return record(run, "runs/log-metric", body)


# ---------------------------------------------------------------------- a whole training


@dataclass
class Training:
    """A training recorded once: what it journaled, what it left, and what is true of it."""

    before: Path  # the store, before
    truth: Path  # the store that the same calls were logged to
    records: list[Record]
    objects: dict[str, bytes]  # artifacts, under the ids that the recording server gave out
    run: SyncedRun
    end_time: int


@pytest.fixture(scope="module")
def training(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, storage_service: str
) -> Iterator[Training]:
    directory = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", storage_service)
        storage = Storage(f"training-{uuid.uuid4().hex[:8]}")
        storage._client.create_bucket(storage.bucket)
        run = make_run(directory, empty_store, storage)
        before, truth = directory / "before.db", directory / "truth.db"
        shutil.copy(run.database, before)
        with recording(run, truth) as (url, recorder):
            _train(url, run)
        objects = {info.name: storage.read(info.name) or b"" for info in storage.list("")}
        from mlflow.tracking import MlflowClient

        main = MlflowClient(tracking_uri=f"sqlite:///{truth}").get_run(run.run_id)
        yield Training(before, truth, recorder.records, objects, run, main.info.end_time)


def _train(url: str, run: SyncedRun) -> None:
    """What a training script does with MLflow's fluent interface."""
    import mlflow
    import numpy as np

    mlflow.set_tracking_uri(url)
    try:
        mlflow.set_experiment(experiment_id=run.experiment_id)
        with mlflow.start_run(run_id=run.run_id, run_name="renamed"):
            mlflow.log_params({"lr": 0.1, "empty": "", "text": "a\n'b' \"c\" ü"})
            mlflow.log_param("one", 1)
            for epoch in range(1, 4):
                mlflow.log_metrics({"loss": 1 / epoch, "nan": float("nan")}, step=epoch)
                mlflow.log_metric("inf", float("-inf"), step=epoch)
            mlflow.set_tag("stage", "one")
            mlflow.set_tag("gone", "soon")
            mlflow.set_tags({"stage": "two", "x": "y"})
            mlflow.delete_tag("gone")
            array = np.arange(6).reshape(2, 3)
            dataset = mlflow.data.from_numpy(array, name="digits")
            mlflow.log_input(dataset, context="training", tags={"k": "v"})
            mlflow.log_text("hello", "notes/a.txt")

            @mlflow.pyfunc.utils.pyfunc
            def echo(model_input: list[int]) -> list[int]:
                return model_input

            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=echo,
                pip_requirements=["mlflow"],
                params={"depth": 3},
                tags={"kind": "echo"},
            )
            mlflow.log_metric("score", 0.5, step=9, model_id=info.model_id, dataset=dataset)
            mlflow.set_logged_model_tags(info.model_id, {"late": "tag", "away": "x"})
            mlflow.delete_logged_model_tag(info.model_id, "away")
            mlflow.log_model_params({"more": "1"}, model_id=info.model_id)
            mlflow.set_tag("best_model", info.model_id)
            for name in ("child-1", "child-2"):
                with mlflow.start_run(nested=True, run_name=name) as child:
                    mlflow.log_param("c", name)
                    mlflow.log_metric("cm", 2.0, step=1)
                    mlflow.log_text(child.info.run_id, "child.txt")
            mlflow.set_tag("last_child", child.info.run_id)
    finally:
        mlflow.set_tracking_uri(None)


@pytest.fixture
def trained(training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SyncedRun:
    """The run as it is when the instance has gone: artifacts and journal in the bucket, and a
    store that knows nothing of it yet."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", _service(training))
    storage = training.run.storage
    for info in list(storage.list("")):
        storage.delete(info.name)
    for name, data in training.objects.items():
        storage.put(name, data)
    database = tmp_path / "store.db"
    shutil.copy(training.before, database)
    return SyncedRun(database, storage, training.run.experiment_id, training.run.run_id)


def _service(training: Training) -> str:
    return str(training.run.storage._client._connection.API_BASE_URL)


def truth(training: Training) -> dict[str, Any]:
    return export(f"sqlite:///{training.truth}", training.run.run_id)


def test_the_store_ends_as_if_everything_had_been_logged_directly(
    training: Training, trained: SyncedRun
) -> None:
    trained.put_journal(training.records, segment=7)
    sync = applier(trained)

    assert sync.apply_new() == len(training.records)
    assert sync.finish() == 0
    sync.set_final_status("FINISHED", training.end_time)

    assert sync.refused == []
    assert export(trained.uri, trained.run_id) == truth(training)
    assert len(truth(training)["children"]) == 2
    assert truth(training)["models"]["model"]["status"] == "READY"


def test_applying_everything_again_changes_nothing(training: Training, trained: SyncedRun) -> None:
    trained.put_journal(training.records, segment=4)
    applier(trained).finish()
    client(trained).set_tag(trained.run_id, APPLIED_TAG, "0")
    again = applier(trained)

    assert again.finish() == len(training.records)
    again.set_final_status("FINISHED", training.end_time)

    assert again.refused == []
    assert export(trained.uri, trained.run_id) == truth(training)


@pytest.mark.parametrize("seed", range(4))
def test_a_client_that_dies_anywhere_leaves_the_rest_to_the_next(
    training: Training, trained: SyncedRun, seed: int
) -> None:
    """Each client applies some segments, and part of one more that it never accounts for."""
    chance = random.Random(seed)
    last = trained.put_journal(training.records, segment=3)
    position = 0
    while position < last:
        for number, records in trained.storage.read_journal(trained.paths, position, limit=1):
            dying = Replay(
                store := RunStore(trained.uri, trained.run_id),
                ids := ProvisionalIds(store),
                lambda refusal: pytest.fail(str(refusal)),
            )
            ids.load()
            for one in records[: chance.randint(0, len(records))]:
                dying.take(one)
            if chance.random() < 0.5:
                dying.flush()
            position = number + chance.randint(0, 2)
        held_back = {
            n: trained.storage.read(trained.paths.journal(n)) or b""
            for n in range(position + 1, last + 1)
        }
        for n in held_back:
            trained.storage.delete(trained.paths.journal(n))
        applier(trained).apply_new()
        for n, data in held_back.items():
            trained.storage.put(trained.paths.journal(n), data)
    sync = applier(trained)
    sync.finish()
    sync.set_final_status("FINISHED", training.end_time)

    assert export(trained.uri, trained.run_id) == truth(training)


def test_two_clients_at_once_do_no_harm(training: Training, trained: SyncedRun) -> None:
    first, second = applier(trained), applier(trained)
    for number, start in enumerate(range(0, len(training.records), 5), 1):
        trained.put_journal(training.records[start : start + 5], first=number)
        (first if number % 3 else second).apply_new()
    second.finish()
    first.finish()
    first.set_final_status("FINISHED", training.end_time)

    assert export(trained.uri, trained.run_id) == truth(training)


# What a client does in a process of its own: apply until the last segment is in, then finish.
_CLIENT = """
import sys, time
from gce_backend.agent.paths import RunPaths
from gce_backend.storage import Storage
from gce_backend.sync import JournalApplier

bucket, prefix, uri, run_id, last = sys.argv[1:]
storage = Storage(bucket, project="demo-project", retry_seconds=5)
applier = JournalApplier(storage, RunPaths(prefix, run_id), tracking_uri=uri, run_id=run_id)
print("ready", flush=True)
end = time.monotonic() + 100
while applier._store.position() < int(last):
    applier.apply_new(patience=0)
    assert time.monotonic() < end
applier.finish()
assert applier.refused == [], applier.refused
"""


@pytest.mark.rotating(one_in=3)
def test_two_processes_that_apply_one_journal_do_each_part_once_and_in_order(
    training: Training, trained: SyncedRun
) -> None:
    flips: list[Record] = []
    for number in range(60):
        flips.append(record(trained, "runs/set-tag", {"key": "flip", "value": str(number)}))
        flips.append(record(trained, "runs/set-tag", {"key": f"is_{number}", "value": "x"}))
        flips.append(record(trained, "runs/delete-tag", {"key": f"is_{number}"}))
    segments = [[one] for one in (*training.records, *flips)]
    place = [trained.storage.bucket, PREFIX, trained.uri, trained.run_id, str(len(segments))]
    command = [sys.executable, "-c", _CLIENT, *place]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for process in clients:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for number, records in enumerate(segments, 1):
            trained.put_journal(records, first=number)
        assert [process.wait(timeout=120) for process in clients] == [0, 0]
    finally:
        for process in clients:
            process.kill()
            process.communicate()
    applier(trained).set_final_status("FINISHED", training.end_time)

    result = export(trained.uri, trained.run_id)
    assert result["main"]["tags"].pop("flip") == "59"
    assert result == truth(training)
    everything = client(trained).search_runs([trained.experiment_id], run_view_type=3)
    assert len(everything) == 3, "a child run was made twice"
    assert not trained.storage.exists(trained.paths.sync_lock)


def test_a_client_that_follows_keeps_the_lease_for_a_while_and_lets_go(run: SyncedRun) -> None:
    live, other = applier(run), applier(run)
    run.put_journal([metric(run, "m", 1.0, 1)], first=1)
    assert live.apply_new(patience=0, hold=60) == 1
    run.put_journal([metric(run, "m", 2.0, 2)], first=2)

    assert other.apply_new(patience=0) == 0
    held = run.storage.info(run.paths.sync_lock)
    assert live.apply_new(patience=0, hold=60) == 1
    assert run.storage.info(run.paths.sync_lock) == held
    live.let_go()
    run.put_journal([metric(run, "m", 3.0, 3)], first=3)
    assert other.apply_new(patience=0) == 1

    run.put_journal([metric(run, "m", 4.0, 4)], first=4)
    assert live.apply_new(patience=0, hold=60) == 1
    live.finish()  # which keeps nothing
    assert not run.storage.exists(run.paths.sync_lock)


def test_what_was_written_while_the_lease_was_lost_is_written_again(
    run: SyncedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile another client may have gone further, and an old tag come over its new one."""
    run.put_journal([record(run, "runs/set-tag", {"key": "k", "value": "old"})], first=1)
    sleeper, other = applier(run), applier(run)
    write = sleeper._apply

    def slow(records: list[Record]) -> None:
        sleeper._lease._over.set()
        sleeper._lease._renewed = (0.0, 0.0)  # as after a sleep of hours
        run.storage.delete(run.paths.sync_lock)
        run.put_journal([record(run, "runs/set-tag", {"key": "k", "value": "new"})], first=2)
        assert other.apply_new() == 2
        write(records)

    monkeypatch.setattr(sleeper, "_apply", slow)
    with pytest.raises(TrackingError, match="applied again"):
        sleeper.apply_new()
    assert client(run).get_run(run.run_id).data.tags["k"] == "old"
    monkeypatch.setattr(sleeper, "_apply", write)

    assert sleeper.apply_new() == 2
    assert client(run).get_run(run.run_id).data.tags["k"] == "new"


def test_of_two_made_for_one_provisional_id_one_remains(
    training: Training, trained: SyncedRun
) -> None:
    create = next(r for r in training.records if r["path"] == "runs/create")
    tags = {ID_TAG: create["provisional_id"], OF_TAG: trained.run_id}
    ids = [
        client(trained).create_run(trained.experiment_id, tags=tags).info.run_id for _ in range(3)
    ]
    found = ProvisionalIds(RunStore(trained.uri, trained.run_id))
    found.load()

    assert found.real(create["provisional_id"]) == min(ids)
    stages = {i: client(trained).get_run(i).info.lifecycle_stage for i in ids}
    assert [i for i, stage in stages.items() if stage == "active"] == [min(ids)]


# ---------------------------------------------------------------------- files


def _manifest(run: SyncedRun) -> dict[str, Any]:
    objects = [
        {
            "bucket": run.storage.bucket,
            "name": info.name,
            "size": info.size,
            "md5": info.md5,
            "crc32c": info.crc32c,
            "generation": info.generation,
        }
        for info in run.storage.list(f"{PREFIX}/")
    ]
    manifest = {"version": 1, "run_id": run.run_id, "attempt": 1, "objects": objects}
    run.storage.put_json(run.paths.manifest, manifest)
    return manifest


def test_files_move_to_where_the_store_says_they_are(
    training: Training, trained: SyncedRun
) -> None:
    import mlflow

    trained.put_journal(training.records)
    before = _manifest(trained)
    applier(trained).finish()

    model = client(trained).search_logged_models([trained.experiment_id])[0]
    children = client(trained).search_runs(
        [trained.experiment_id], f"tags.`mlflow.parentRunId` = '{trained.run_id}'"
    )
    provisional = {r["provisional_id"] for r in training.records if "provisional_id" in r}
    names = [info.name for info in trained.storage.list("")]
    assert len(names) == len(before["objects"]) + 1
    assert not [name for name in names if any(one in name for one in provisional)]
    for child in children:
        root = child.info.artifact_uri.removeprefix(f"gs://{trained.storage.bucket}/")
        assert f"{root}/child.txt" in names
    path = model.artifact_location.removeprefix(f"gs://{trained.storage.bucket}/")
    text = (trained.storage.read(f"{path}/MLmodel") or b"").decode()
    assert f"model_id: {model.model_id}" in text
    assert f"artifact_path: {model.artifact_location}" in text
    assert not any(one in text for one in provisional)
    loaded = mlflow.pyfunc.load_model(model.artifact_location)
    assert loaded.predict([1, 2]) == [1, 2]


def test_the_manifest_goes_on_proving_that_everything_is_there(
    training: Training, trained: SyncedRun
) -> None:
    trained.put_journal(training.records)
    before = _manifest(trained)
    assert trained.storage.verify(before) == []
    applier(trained).finish()
    after = trained.storage.read_json(trained.paths.manifest)

    assert trained.storage.verify(after) == []
    assert len(after["objects"]) == len(before["objects"])
    assert trained.storage.verify(before) != []


def test_a_move_that_was_cut_short_is_completed(training: Training, trained: SyncedRun) -> None:
    trained.put_journal(training.records)
    _manifest(trained)
    applier(trained).finish()
    whole = {info.name: info.crc32c for info in trained.storage.list("")}
    # As if the process had died between two deletions: some originals are there again.
    originals = [n for n in training.objects if n not in whole]
    for name in originals[1:]:
        trained.storage.put(name, training.objects[name])
    applier(trained).finish()

    assert {i.name: i.crc32c for i in trained.storage.list("")} == whole
    assert trained.storage.verify(trained.storage.read_json(trained.paths.manifest)) == []


def test_a_model_is_ready_only_when_its_files_are_in_place(
    training: Training, trained: SyncedRun
) -> None:
    trained.put_journal(training.records)
    sync = applier(trained)
    sync.apply_new()
    before = client(trained).search_logged_models([trained.experiment_id])[0]
    sync.finish()
    after = client(trained).search_logged_models([trained.experiment_id])[0]

    assert (str(before.status), str(after.status)) == ("PENDING", "READY")
    assert {tag for tag in after.tags if tag.startswith("gce.")} == {ID_TAG, OF_TAG}


def test_a_model_that_the_trainer_did_not_complete_stays_pending(
    training: Training, trained: SyncedRun
) -> None:
    records = [r for r in training.records if r["body"].get("status") != "LOGGED_MODEL_READY"]
    trained.put_journal(records)
    applier(trained).finish()

    model = client(trained).search_logged_models([trained.experiment_id])[0]
    assert str(model.status) == "PENDING"


# ---------------------------------------------------------------------- what a store refuses


def test_what_the_store_refuses_is_set_aside_and_shown_and_stops_nothing(run: SyncedRun) -> None:
    records = [
        record(run, "runs/log-parameter", {"key": "lr", "value": "0.1"}),
        metric(run, "a", 1.0, 1),
        record(run, "runs/log-parameter", {"key": "lr", "value": "0.2"}),
        record(run, "runs/log-batch", {"metrics": [{"key": "x" * 300, "value": 1}]}),
        record(run, "runs/log-batch", {"params": [{"key": "p" * 300, "value": "v"}]}),
        record(run, "runs/log-batch", {"metrics": [{"key": "m", "value": "seven"}]}),
        record(run, "runs/teleport", {}),
        {"unreadable": '{"seq": 8, "pa'},
        {"seq": 9},
        record(run, "runs/create", {"experiment_id": run.experiment_id}),  # no provisional id
        record(run, "runs/set-tag", {"run_id": "f" * 32, "key": "k", "value": "v"}),
        record(
            run, "logged-models/m-" + "e" * 32, {"status": "LOGGED_MODEL_READY"}, method="PATCH"
        ),
        metric(run, "a", 2.0, 2),
        record(run, "runs/set-tag", {"key": "after", "value": "all"}),
    ]
    for seq, one in enumerate(records, 1):
        one["seq"] = seq
    run.put_journal(records, segment=5)
    sync = applier(run)

    assert sync.apply_new() == len(records)

    data = client(run).get_run(run.run_id).data
    assert data.params == {"lr": "0.1"}
    assert data.metrics == {"a": 2.0}
    assert data.tags["after"] == "all"
    assert [refusal.seq for refusal in sync.refused] == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    reasons = {refusal.seq: f"{refusal.what}: {refusal.reason}" for refusal in sync.refused}
    assert reasons[3].startswith(f"param 'lr' of run {run.run_id}: ")
    assert "Changing param values is not allowed" in reasons[3]
    assert reasons[7] == ("POST runs/teleport: this version of mlflow-gce does not know this write")
    assert reasons[8].startswith('{"seq": 8, "pa: not a journal record')
    account = json.loads(data.tags[REFUSED_TAG])
    assert account["count"] == 10
    assert [entry["record"] for entry in account["first"]] == [3, 4, 5]
    assert applier(run).apply_new() == 0


def test_half_a_character_in_a_record_stops_nothing(run: SyncedRun) -> None:
    """No JSON parser minds an unpaired surrogate, and no database takes one."""
    records = [
        record(run, "runs/set-tag", {"key": "half", "value": "\ud800"}),
        record(run, "runs/log-parameter", {"key": "p", "value": "\ud83d" * 500}),
        record(run, "runs/\udfff", {}),
        metric(run, "a", 2.0, 2),
    ]
    for seq, one in enumerate(records, 1):
        one["seq"] = seq
    run.put_journal(records)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    sync = JournalApplier(
        run.storage,
        run.paths,
        tracking_uri=run.uri,
        run_id=run.run_id,
        warn=Console(err=shown).warn,
    )

    assert sync.apply_new() == len(records)

    data = client(run).get_run(run.run_id).data
    assert data.metrics == {"a": 2.0}
    assert json.loads(data.tags[REFUSED_TAG])["count"] == 3
    assert applier(run).apply_new() == 0


_NOBODY, _NO_MODEL, _NOWHERE = "f" * 32, "m-" + "e" * 32, "404"
_DATASET = {"name": "n", "digest": "d", "source_type": "s", "source": "{}"}

#: A body that no store accepts, for every kind of record that is applied.
POISON: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "runs/log-batch"): {"run_id": _NOBODY, "tags": [{"key": "k", "value": "v"}]},
    ("POST", "runs/log-metric"): {"key": "x" * 300, "value": 1.0, "timestamp": 1},
    ("POST", "runs/log-parameter"): {"key": "lr", "value": "another"},
    ("POST", "runs/set-tag"): {"key": "x" * 300, "value": "v"},
    ("POST", "runs/create"): {"experiment_id": _NOWHERE},
    ("POST", "runs/update"): {"run_id": _NOBODY, "run_name": "n"},
    ("POST", "runs/log-inputs"): {
        "datasets": [{"tags": [{"key": "x" * 300, "value": "v"}], "dataset": _DATASET}]
    },
    ("POST", "runs/outputs"): {"run_id": _NOBODY, "models": [{"model_id": _NO_MODEL}]},
    ("POST", "runs/delete-tag"): {"run_id": _NOBODY, "key": "k"},
    ("POST", "runs/log-model"): {"model_json": "no JSON"},
    ("POST", "experiments/set-experiment-tag"): {"experiment_id": _NOWHERE, "key": "k"},
    ("POST", "logged-models"): {"experiment_id": _NOWHERE, "name": "m"},
    ("PATCH", f"logged-models/{_NO_MODEL}"): {"status": "LOGGED_MODEL_READY"},
    ("POST", f"logged-models/{_NO_MODEL}/params"): {"params": [{"key": "k", "value": "v"}]},
    ("PATCH", f"logged-models/{_NO_MODEL}/tags"): {"tags": [{"key": "k", "value": "v"}]},
    ("DELETE", f"logged-models/{_NO_MODEL}/tags/k"): {},
}


def test_every_kind_of_record_can_be_refused_without_stopping_what_follows(run: SyncedRun) -> None:
    known = {("POST", path) for path in ENTRIES} | set(Replay.calls)
    of_models = {
        (method, "".join(path.split("/")[2:3])) for method, path in POISON if _NO_MODEL in path
    }
    assert {key for key in POISON if _NO_MODEL not in key[1]} == known
    assert of_models == set(Replay.model_calls)
    records = [record(run, "runs/log-parameter", {"key": "lr", "value": "0.1"})]
    for number, ((method, path), body) in enumerate(POISON.items(), 1):
        records.append(record(run, path, body, method=method, provisional_id=f"{number:032x}"))
        records.append(metric(run, "after", float(number), number))
    for seq, one in enumerate(records, 1):
        one["seq"] = seq
    run.put_journal(records, segment=7)
    told: list[str] = []
    sync = JournalApplier(
        run.storage, run.paths, tracking_uri=run.uri, run_id=run.run_id, warn=told.append
    )

    assert sync.apply_new() == len(records)

    history = client(run).get_metric_history(run.run_id, "after")
    assert [point.step for point in history] == list(range(1, len(POISON) + 1))
    assert [refusal.seq for refusal in sync.refused] == list(range(2, len(records) + 1, 2))
    found = client(run).get_run(run.run_id)
    assert json.loads(found.data.tags[REFUSED_TAG])["count"] == len(POISON)
    assert len(told) == 4
    assert told[0].startswith("the tracking store does not accept tag 'k' of run ffff")
    root = found.info.artifact_uri.removeprefix(f"gs://{run.storage.bucket}/")
    kept = [
        entry
        for info in run.storage.list(f"{root}/{DIRECTORY}/")
        for entry in json.loads(run.storage.read(info.name) or b"")
    ]
    assert sorted(entry["record"] for entry in kept) == [r.seq for r in sync.refused]
    assert all(entry["reason"] for entry in kept)
    contents = {json.loads(entry["content"])["path"] for entry in kept}
    assert contents == {path for _, path in POISON}


def test_the_account_of_refusals_goes_on_over_clients(run: SyncedRun) -> None:
    for number in range(1, 6):
        run.put_journal([record(run, "runs/nonsense/" + "ü" * 9000, {})], first=number)
        applier(run).apply_new()

    account = json.loads(client(run).get_run(run.run_id).data.tags[REFUSED_TAG])
    assert account["count"] == 5
    assert len(account["first"]) == 3


def test_one_bad_entry_does_not_take_its_batch_with_it(run: SyncedRun) -> None:
    points = [{"key": "m", "value": i, "timestamp": 5, "step": i} for i in range(900)]
    points[450]["key"] = "bad\x01key"
    body = {"metrics": points, "params": [{"key": "p", "value": "1"}]}
    run.put_journal([record(run, "runs/log-batch", body)])
    sync = applier(run)
    sync.apply_new()

    assert len(client(run).get_metric_history(run.run_id, "m")) == 899
    assert client(run).get_run(run.run_id).data.params == {"p": "1"}
    assert [refusal.count for refusal in sync.refused] == [1]


def test_values_of_the_wrong_type_cost_themselves_and_nothing_else(run: SyncedRun) -> None:
    """Agents once took them in; MLflow's own code then raises anything."""
    good = {"key": "good", "value": 1.0, "timestamp": 1, "step": 0}
    odd = [
        {**good, "key": "nan", "value": float("nan")},
        {**good, "key": "half", "timestamp": 1.5},
        {**good, "key": "none", "value": None},
    ]
    texts = [{"key": "number", "value": 3}, {"key": "text", "value": "3"}]
    records = [
        metric(run, "before", 1.0, 1),
        record(run, "runs/set-tag", {"key": "epochs", "value": 3}),
        record(run, "runs/log-parameter", {"key": "lr", "value": 0.1}),
        record(run, "runs/log-inputs", {"datasets": []}),
        record(run, "runs/log-batch", {"metrics": [good, *odd], "params": texts, "tags": texts}),
        metric(run, "after", 1.0, 1),
    ]
    for seq, one in enumerate(records, 1):
        one["seq"] = seq
    run.put_journal(records)
    sync = applier(run)

    assert sync.apply_new() == len(records)

    data = client(run).get_run(run.run_id).data
    assert sorted(data.metrics) == ["after", "before", "good", "half", "nan"]
    assert data.params == {"text": "3"} and data.tags["text"] == "3"
    assert [(refusal.seq, refusal.count) for refusal in sync.refused] == [
        *((2, 1), (3, 1)),
        *(3 * [(5, 1)]),
    ]
    assert sync.refused[0].what == f"tag 'epochs' of run {run.run_id}"
    assert "3" in sync.refused[0].reason and "string" in sync.refused[0].reason


def test_what_mlflow_stumbles_over_is_refused(run: SyncedRun) -> None:
    """Its checks raise more than its own exceptions."""
    store = RunStore(run.uri, run.run_id)

    def stumble() -> None:
        raise TypeError("object of type 'float' has no len()")

    with pytest.raises(Refused, match="TypeError: object of type 'float'"):
        store.write(stumble)


def test_a_page_in_place_of_the_stores_answer_is_the_store_being_away(run: SyncedRun) -> None:
    """Of a proxy, which says 200 to it; a record is not to blame."""
    store = RunStore(run.uri, run.run_id)

    with pytest.raises(TrackingError, match="the tracking store answered no JSON: ") as raised:
        store.read(lambda: json.loads("<html>"))

    assert raised.value.transient


def test_writes_to_a_child_that_somebody_deleted_are_refused_as_one(
    training: Training, trained: SyncedRun
) -> None:
    create = next(r for r in training.records if r["path"] == "runs/create")
    trained.put_journal([create])
    sync = applier(trained)
    sync.apply_new()
    child = create["provisional_id"]
    client(trained).delete_run(sync._ids.real(child))
    points = [{"key": "m", "value": i, "timestamp": 5, "step": i} for i in range(500)]
    trained.put_journal(
        [record(trained, "runs/log-batch", {"run_id": child, "metrics": points})], first=2
    )
    sync.apply_new()

    assert [refusal.count for refusal in sync.refused] == [500]


# ---------------------------------------------------------------------- order and limits


def test_the_last_tag_wins_and_a_deleted_one_is_gone(run: SyncedRun) -> None:
    tags = [("a", "1"), ("b", "1"), ("a", "2"), ("a", "3"), ("b", "2")]
    records = [record(run, "runs/set-tag", {"key": k, "value": v}) for k, v in tags]
    records.insert(3, record(run, "runs/delete-tag", {"key": "b"}))
    records.append(record(run, "runs/delete-tag", {"key": "never"}))
    records.append(record(run, "runs/update", {"run_name": "name 1"}))
    records.append(record(run, "runs/set-tag", {"key": "mlflow.runName", "value": "name 2"}))
    run.put_journal(records, segment=2)
    sync = applier(run)
    sync.apply_new()

    found = client(run).get_run(run.run_id)
    assert (found.data.tags["a"], found.data.tags["b"]) == ("3", "2")
    assert found.info.run_name == "name 2"
    assert sync.refused == []


def test_the_trainer_does_not_say_how_the_main_run_ended(run: SyncedRun) -> None:
    body = {"status": "FINISHED", "end_time": 7, "run_name": "n"}
    run.put_journal([record(run, "runs/update", body)])
    sync = applier(run)
    sync.apply_new()
    before = client(run).get_run(run.run_id).info
    sync.set_final_status("KILLED", 1_764_000_009_000)
    after = client(run).get_run(run.run_id).info

    assert (before.status, before.end_time, before.run_name) == ("RUNNING", None, "n")
    assert (after.status, after.end_time) == ("KILLED", 1_764_000_009_000)


def test_batches_respect_the_stores_limits(run: SyncedRun) -> None:
    body = {
        "metrics": [{"key": "m", "value": i, "timestamp": 5, "step": i} for i in range(2500)],
        "params": [{"key": f"p{i}", "value": str(i)} for i in range(250)],
        "tags": [{"key": f"t{i}", "value": str(i)} for i in range(250)],
    }
    run.put_journal([record(run, "runs/log-batch", body)])
    sync = applier(run)
    sync.apply_new()

    data = client(run).get_run(run.run_id).data
    assert sync.refused == []
    assert len(client(run).get_metric_history(run.run_id, "m")) == 2500
    assert (len(data.params), len([t for t in data.tags if t[0] == "t"])) == (250, 250)


def test_segments_wait_for_the_one_before(run: SyncedRun) -> None:
    run.put_journal([metric(run, "m", 2.0, 2)], first=2)
    sync = applier(run)
    assert sync.apply_new() == 0
    run.put_journal([metric(run, "m", 1.0, 1)], first=1)

    assert sync.apply_new() == 2
    assert client(run).get_run(run.run_id).data.tags[APPLIED_TAG] == "2"


def test_the_model_history_of_mlflow_2_is_written_once(run: SyncedRun) -> None:
    model = {"artifact_path": "m", "flavors": {}, "run_id": run.run_id, "utc_time_created": "t"}
    run.put_journal([record(run, "runs/log-model", {"model_json": json.dumps(model)})] * 2)
    sync = applier(run)
    sync.apply_new()

    history = json.loads(client(run).get_run(run.run_id).data.tags["mlflow.log-model.history"])
    assert sync.refused == []
    assert [entry["artifact_path"] for entry in history] == ["m"]


def test_experiment_tags_are_applied(run: SyncedRun) -> None:
    body = {"experiment_id": run.experiment_id, "key": "k", "value": "v"}
    run.put_journal([record(run, "experiments/set-experiment-tag", body)])
    applier(run).apply_new()

    assert client(run).get_experiment(run.experiment_id).tags["k"] == "v"


@pytest.mark.rotating(one_in=3)  # half a minute each, of which a usual run has one
@pytest.mark.parametrize("kind", ["sqlite file", pytest.param("server", marks=pytest.mark.long)])
def test_100_000_points_are_applied_with_bounded_memory(run: SyncedRun, kind: str) -> None:
    server = MlflowServer(run.database.parent, run.uri)
    if kind == "server":
        server.start()
    try:
        _apply_100_000_points(run, server.url if kind == "server" else run.uri)
    finally:
        server.kill()


def _apply_100_000_points(run: SyncedRun, uri: str) -> None:
    per_segment = 1000
    applier(run, uri).apply_new()  # what imports and connections take is not counted
    for number in range(1, 101):
        first = (number - 1) * per_segment
        records = [metric(run, f"m{i % 4}", i / 7, i) for i in range(first, first + per_segment)]
        run.put_journal(records, segment=per_segment, first=number)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert applier(run, uri).apply_new() == 100_000

    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    with sqlite3.connect(run.database) as database:
        rows = database.execute("select count(*) from metrics").fetchone()[0]
    assert rows == 100_000
    assert grown < 100  # MiB


# ---------------------------------------------------------------------- a store that is away


def test_a_store_file_that_was_moved_away_is_waited_for_and_not_made_anew(
    run: SyncedRun, tmp_path: Path
) -> None:
    run.put_journal([metric(run, "m", 1.0, 1)])
    sync = applier(run)
    away = tmp_path / "elsewhere.db"
    run.database.rename(away)

    with pytest.raises(TrackingError, match=r"store\.db' is not there") as error:
        sync.apply_new()

    assert error.value.transient
    assert f"mlflow-gce sync {run.run_id}" in str(error.value)
    assert not run.database.exists()
    away.rename(run.database)
    assert sync.apply_new() == 1


def test_a_server_that_refuses_connections_is_reported_at_once(run: SyncedRun) -> None:
    sync = applier(run, "http://user:secret@127.0.0.1:1")  # nothing listens on port 1
    started = time.monotonic()

    with pytest.raises(TrackingError) as error:
        sync.apply_new()

    assert time.monotonic() - started < 5
    assert error.value.transient
    assert "secret" not in str(error.value)


def test_a_run_that_is_unknown_or_deleted_keeps_its_journal_waiting(run: SyncedRun) -> None:
    run.put_journal([metric(run, "m", 1.0, 1)])
    client(run).delete_run(run.run_id)
    with pytest.raises(TrackingError, match="mlflow runs restore --run-id"):
        applier(run).apply_new()

    unknown = JournalApplier(run.storage, run.paths, tracking_uri=run.uri, run_id="0" * 32)
    with pytest.raises(TrackingError, match="404") as error:
        unknown.apply_new()
    assert not error.value.transient

    client(run).restore_run(run.run_id)
    assert applier(run).apply_new() == 1


def test_a_store_that_takes_no_write_at_all_is_not_taken_for_a_bad_record(
    run: SyncedRun,
) -> None:
    """MLflow answers 400, as for a bad record, when the database fails in most ways."""
    run.put_journal([metric(run, "m", 1.0, 1)])
    sync = applier(run)
    with sqlite3.connect(run.database) as database:
        for table in ("metrics", "tags"):
            fail = "begin select raise(fail, 'read-only'); end"
            database.execute(f"create trigger no_{table} before insert on {table} {fail}")
    with pytest.raises(TrackingError, match="read-only"):
        sync.apply_new()
    with sqlite3.connect(run.database) as database:
        for table in ("metrics", "tags"):
            database.execute(f"drop trigger no_{table}")

    assert sync.apply_new() == 1
    assert sync.refused == []
    assert client(run).get_run(run.run_id).data.metrics == {"m": 1.0}


def test_the_patience_of_mlflows_client_is_short_only_while_we_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    with brief_retries():
        with brief_retries():
            pass
        inside = [os.environ.get(name) for name in names]

    assert inside == ["0", "20"]
    assert [os.environ.get(name) for name in names] == ["9", "120"]  # MLflow's own default


def test_who_reads_the_environment_meanwhile_is_not_tripped(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with brief_retries():
        reading = iter(os.environ.items())  # as `requests` does for every call, in any thread
        next(reading)

    assert dict(reading)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://user:pass@host:1/x", "http://host:1/x"),
        ("postgresql://u:p@h/db", "postgresql://h/db"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_messages_name_the_store_without_its_password(uri: str, expected: str) -> None:
    assert without_credentials(uri) == expected


# ---------------------------------------------------------------------- a real server


@pytest.mark.rotating(one_in=3)
def test_a_server_killed_in_the_middle_gets_everything_once_it_is_back(
    training: Training, trained: SyncedRun
) -> None:
    last = trained.put_journal(training.records, segment=5)
    points = 20_000
    for first in range(0, points, 1000):
        records = [metric(trained, "extra", i / 3, i) for i in range(first, first + 1000)]
        last = trained.put_journal(records, segment=1000, first=last + 1)
    server = MlflowServer(trained.database.parent, trained.uri)
    sync = applier(trained, server.url)
    failures: list[TrackingError] = []

    def apply() -> None:
        try:
            sync.apply_new()
        except TrackingError as error:
            failures.append(error)

    try:
        server.start()
        thread = threading.Thread(target=apply)
        thread.start()
        _wait_for_rows(trained.database, 3000)
        server.kill()
        thread.join(timeout=60)
        assert [error.transient for error in failures] == [True]
        started = time.monotonic()
        with pytest.raises(TrackingError):
            sync.apply_new()
        assert time.monotonic() - started < 5

        server.start()
        sync.finish()
        sync.set_final_status("FINISHED", training.end_time)
    finally:
        server.kill()

    assert sync.refused == []
    with sqlite3.connect(trained.database) as database:
        count = "select count(*), count(distinct step) from metrics where key = 'extra'"
        assert database.execute(count).fetchone() == (points, points)
    result = export(trained.uri, trained.run_id)
    for part in ("metrics", "latest"):
        del result["main"][part]["extra"]
    assert result == truth(training)


def _wait_for_rows(database: Path, rows: int) -> None:
    end = time.monotonic() + 60
    with sqlite3.connect(database) as connection:
        while connection.execute("select count(*) from metrics").fetchone()[0] < rows:
            assert time.monotonic() < end
            time.sleep(0.02)
