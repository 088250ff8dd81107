"""A sweep's runs in the store: their names, and the best one's model in the registry."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from gce_backend.sweep.store import SweepStore, job_name


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> SweepStore:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return SweepStore(f"sqlite:///{tmp_path}/mlflow.db")


def run_with_model(store: SweepStore, **model: Any) -> tuple[str, str]:
    """A run that logged a model: ids of both."""
    client = MlflowClient(store.uri)
    run_id = client.create_run("0").info.run_id
    made = client.create_logged_model("0", name="model", source_run_id=run_id, **model)
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(made.model_id, step=1)])
    return run_id, made.model_id


@pytest.mark.parametrize(
    ("overrides", "words", "name"),
    [
        (["optimizer.lr=0.1", "data=a"], ["optimizer.lr=0.1,0.2", "data=a"], "2: lr=0.1"),
        (["+x=1", "model=cnn"], ["+x=range(3)", "model=cnn,mlp"], "2: x=1 model=cnn"),
        (["lr=0.1"], ["lr=0.1"], "2: as it is"),
    ],
)
def test_a_jobs_run_is_named_after_what_only_it_has(
    overrides: list[str], words: list[str], name: str
) -> None:
    assert job_name(2, overrides, words) == name


def test_the_alias_follows_the_best_model_and_registers_none_twice(store: SweepStore) -> None:
    client = MlflowClient(store.uri)
    first, first_model = run_with_model(store)
    second, _ = run_with_model(store)

    versions = [store.register_best(run, "digits") for run in (first, second, first)]

    assert versions == ["1", "2", "1"]
    best = client.get_model_version_by_alias("digits", "best")
    assert (best.run_id, best.source) == (first, f"models:/{first_model}")
    assert len(client.search_model_versions("name = 'digits'")) == 2


def test_the_model_is_found_in_the_sweeps_store_whatever_the_processs_is(
    store: SweepStore, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_store, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    run, _ = run_with_model(store)

    assert store.register_best(run, "digits") == "1"


def test_a_run_without_a_model_registers_nothing(store: SweepStore) -> None:
    client = MlflowClient(store.uri)

    assert store.register_best(client.create_run("0").info.run_id, "digits") is None
    assert client.search_registered_models() == []
