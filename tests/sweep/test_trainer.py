"""The trainer of this checkout, swept over learning rates, models and machines."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from trainer_copy import copy_trainer

from .test_sweeps import runs, table

pytestmark = [pytest.mark.flow, pytest.mark.long, pytest.mark.timeout(1800)]


def test_twelve_jobs_compare_under_one_parent(cloud: Any) -> None:
    project = cloud.directory / "project"
    project.mkdir()
    copy_trainer(project)
    cloud.directory = project
    words = ["optimizer.lr=0.3,0.1,0.03", "model=cnn,mlp", "machine=n1-standard-2,n1-standard-4"]
    words += ["data=digits", "trainer.epochs=1", "gce.max_parallel=4"]

    code, output = cloud.run(
        sys.executable, "train.py", "-m", *words, "hydra/launcher=gce", seconds=1500
    )

    assert code == 0, output
    parent, children = runs(cloud)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 13
    swept = [
        (r.data.params["optimizer.lr"], r.data.params["model"], r.data.params["machine"])
        for r in children
    ]
    assert len(set(swept)) == 12
    accuracies = [run.data.metrics["test_accuracy"] for run in children]
    assert [float(row["value"]) for row in table(cloud, parent)] == pytest.approx(accuracies)
    types = {run.data.params["machine"]: run.data.tags["gce.machine_type"] for run in children}
    assert types == {name: name for name in ("n1-standard-2", "n1-standard-4")}
    for directory in project.glob("multirun/*/*/[0-9]*"):
        assert (directory / "checkpoints" / "last.pt").stat().st_size > 0
    assert len(cloud.inserts()) == 12
