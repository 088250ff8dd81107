"""The relay against the real MLflow client, in a trainer on an instance, and no server at all."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .cloud import Bucket, ControlPlane
from .instance import RUN_ID, TestInstance

pytestmark = [
    pytest.mark.flow,  # real processes and servers
    pytest.mark.xdist_group("mlflow client"),  # one training for all of them
]

TRAINER = Path(__file__).with_name("trainer_with_mlflow.py").read_text()


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, agent_zip: Path, module_bucket: Bucket
) -> Any:
    """The instance after one training; it is long, so the tests below share it."""
    plane = ControlPlane()
    root = tmp_path_factory.mktemp("trained") / "instance"
    instance = TestInstance(root, agent_zip, module_bucket, plane)
    command = f"{sys.executable} train.py && cat facts.json"
    # A proxy for everything else is none for the relay.
    proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    files, end = {"train.py": TRAINER}, time.time() + 240
    instance.submit(command, files, deadline=end, env={**proxies, "NO_PROXY": "internal"})
    instance.start()
    instance.wait(240)
    yield instance
    instance.clean_up()
    plane.stop()


@pytest.fixture(scope="module")
def facts(trained: TestInstance) -> dict[str, Any]:
    assert trained.status["exit_code"] == 0, trained.log
    line = next(one for one in trained.log.splitlines() if one.startswith('{"conflict"'))
    return dict(json.loads(line))


def test_the_trainer_reads_back_what_it_logged(facts: dict[str, Any]) -> None:
    assert facts["params"] == {
        "epochs": "1e0",
        "note": "'a b'",
        "lr": "0.1",
        "batch_size": "32",
        "momentum": "0.9",
    }
    assert facts["metrics"] == {
        "loss": 1 / 3,
        "accuracy": 0.3,
        "late": 5.0,
        "asynchronous": 49,
        "fit": 0.9,
    }
    assert facts["asynchronous"] == [[step, step] for step in range(50)]
    assert facts["tags"] == {"phase": "two"}
    assert facts["history"] == [[1, 1.0], [2, 0.5], [3, 1 / 3]]
    assert facts["datasets"] == ["tiny"]


def test_a_changed_parameter_is_refused_in_mlflows_words(facts: dict[str, Any]) -> None:
    assert "Changing param values is not allowed. Param with key='lr'" in facts["conflict"]


def test_artifacts_are_listed_read_and_overwritten(facts: dict[str, Any]) -> None:
    assert facts["artifacts"] == [
        "config.json",
        "curve.png",
        "deep",
        "folder",
        "images",
        "large.bin",
        "notes.txt",
        "table.json",
        "text",
    ]
    assert facts["deeper"] == ["deep/er/empty.bin"]
    assert facts["text"] == "two"
    assert facts["table"] == [1, 2]
    assert facts["artifact_uri"].startswith("mlflow-artifacts:/bucket-")


def test_a_logged_model_loads_back_on_the_instance(facts: dict[str, Any]) -> None:
    assert facts["same_output"] and facts["model_status"] == "READY"
    assert facts["outputs"][0] == facts["model_id"]
    assert facts["predicts"] == [1]
    name, metrics = facts["found_models"][0]
    assert name == "linear" and metrics["fit"] == 0.9


def test_child_runs_and_autologging_work(facts: dict[str, Any]) -> None:
    assert facts["child_parent"] == RUN_ID
    assert facts["children"] == 1
    assert "training_accuracy_score" in facts["autolog"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("register_model", "mlflow.register_model('runs:/RUN_ID/NAME'"),
        ("load_model", "mlflow.register_model('runs:/RUN_ID/NAME'"),
        ("get_run", "Ask the tracking server itself"),
        ("delete_run", "Delete or restore runs on the client, once this run has ended"),
        ("get_logged_model", "Fetch others before the training"),
        ("rename_experiment", "Do it on the client, before the run or after it"),
        ("search_runs", "Search on the client"),
        ("search_other", "mlflow run --experiment-name NAME"),
        ("set_experiment", "mlflow run --experiment-name NAME"),
    ],
)
def test_what_the_relay_cannot_do_says_what_to_do_instead(
    facts: dict[str, Any], call: str, words: str
) -> None:
    assert words in facts["refusals"][call]


def test_the_journal_holds_every_write_once_and_in_order(trained: TestInstance) -> None:
    records = trained.journal

    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert len(records) == trained.status["journal_records"]
    losses = [record["body"]["value"] for record in records if _is_main_loss(record)]
    assert losses == [1.0, 0.5, 1 / 3]
    creations = [record for record in records if "provisional_id" in record]
    assert [record["path"] for record in creations] == [
        "runs/create",
        "logged-models",
        "logged-models",
        "runs/create",
        "logged-models",
    ]
    assert not [r for r in records if r["path"] == "runs/update" and r["body"]["run_id"] == RUN_ID]


def test_the_bucket_holds_the_artifacts_and_nothing_of_the_relays_address(
    trained: TestInstance, facts: dict[str, Any]
) -> None:
    model = f"mlflow-gce/experiments/digits/models/{facts['model_id']}/artifacts"
    text = trained.bucket.get(f"{model}/MLmodel").decode()

    assert f"artifact_path: {trained.location}/models/{facts['model_id']}" in text
    assert trained.bucket.get(f"{trained.artifacts}/deep/er/empty.bin") == b""
    names = {item["name"] for item in trained.bucket.json(trained.paths.manifest)["objects"]}
    assert set(trained.bucket.names("mlflow-gce/experiments/")) < names
    everything = b"".join(trained.bucket.get(name) for name in trained.bucket.names())
    assert b"mlflow-artifacts:/bucket" not in everything.replace(
        facts["artifact_uri"].encode(), b""
    )


def _is_main_loss(record: dict[str, Any]) -> bool:
    body = record["body"]
    return (record["path"], body.get("key"), body.get("run_id")) == (
        "runs/log-metric",
        "loss",
        RUN_ID,
    )
