"""Sixty-four children at once in one store: what each logged is there, and nothing besides.

The client's own code writes, from as many threads as a sweep has jobs; the instances are played by
their journals, which lie in the bucket.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.config import Settings, load_settings
from gce_backend.lifecycle import EndReason
from gce_backend.project import Source
from gce_backend.storage import Storage
from gce_backend.sweep.store import SweepStore, job_key
from gce_backend.sync import JournalApplier
from gce_backend.tracking import Experiment

from .conftest import FLOWS

sys.path.append(str(FLOWS.parent))
from stores import mlflow_server, postgres, postgres_binaries

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]

CHILDREN = 64
STEPS = 20  # of each child's metric, in two halves: while it runs, and at its end


@contextmanager
def store_uri(kind: str, directory: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{directory / 'store.db'}"
        return
    if postgres_binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with ExitStack() as stack:
        uri = stack.enter_context(postgres())
        host, port = stack.enter_context(mlflow_server(directory, uri))
        yield f"http://{host}:{port}"


@dataclass
class Sweep:
    """The client's part of a sweep, without instances."""

    store: SweepStore
    storage: Storage
    settings: Settings
    experiment: Experiment
    parent: str

    def child(self, number: int) -> str:
        """One job from its run to its end; its id."""
        overrides = [f"x={number}"]
        run_id = self.store.create_child(
            self.experiment,
            self.parent,
            Source(Path("project"), "project"),
            name="app",
            run_name=f"job {number}",
            overrides=overrides,
            settings=self.settings,
            tags={"gce.sweep.job": job_key(overrides), "gce.sweep.number": str(number)},
        )
        paths = RunPaths("mlflow-gce", run_id)
        applier = JournalApplier(self.storage, paths, tracking_uri=self.store.uri, run_id=run_id)
        self.put(paths, 1, number, run_id)
        applier.apply_new()
        self.store.set_running(run_id)
        self.put(paths, 2, number, run_id)
        applier.finish()
        self.store.terminate(run_id, EndReason.SUCCEEDED)
        return run_id

    def put(self, paths: RunPaths, segment: int, number: int, run_id: str) -> None:
        steps = range((segment - 1) * STEPS // 2, segment * STEPS // 2)
        lines = [
            {
                "seq": step + 1,
                "at": 1_764_000_000_000 + step,
                "path": "runs/log-batch",
                "method": "POST",
                "body": {
                    "run_id": run_id,
                    "metrics": [
                        {
                            "key": "loss",
                            "value": number + step / 100,
                            "timestamp": 1_764_000_000_000 + step,
                            "step": step,
                        }
                    ],
                    "params": [{"key": f"own{step}", "value": f"{number}.{step}"}],
                    "tags": [{"key": f"tag{step}", "value": f"{number}.{step}"}],
                },
            }
            for step in steps
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self.storage.put(paths.journal(segment), text.encode())


@pytest.mark.long
@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_sixty_four_children_at_once_lose_no_write(
    kind: str, storage: Storage, tmp_path: Path
) -> None:
    parameters = {"machine": "n1-standard-2", "gce.bucket": storage.bucket, "gce.project": "p"}
    settings = load_settings(Path("/dev/null"), parameters=parameters, environ={})
    with store_uri(kind, tmp_path) as uri:
        store = SweepStore(uri)
        experiment = store.choose_experiment("0", project_name="many", settings=settings)
        parent = store.create_parent(experiment, "sweep-app", {"gce.sweep.key": "k"}, ["x=1"])
        sweep = Sweep(store, storage, settings, experiment, str(parent.info.run_id))

        with ThreadPoolExecutor(CHILDREN) as threads:
            made = list(threads.map(sweep.child, range(CHILDREN)))

        children = store.children(experiment.experiment_id, sweep.parent)
        found = {run.info.run_id: run for run in children}
        assert sorted(found) == sorted(made)
        for number, run_id in enumerate(made):
            run = found[run_id]
            assert run.info.status == "FINISHED"
            own = {f"own{step}": f"{number}.{step}" for step in range(STEPS)}
            assert run.data.params == {"x": str(number), "machine": "n1-standard-2", **own}
            tags = {f"tag{step}": f"{number}.{step}" for step in range(STEPS)}
            assert run.data.tags.items() >= tags.items()
            assert run.data.tags["gce.sweep.number"] == str(number)
            points = [(step, number + step / 100) for step in range(STEPS)]
            assert sorted(store.metric_history(run_id, "loss")) == points
