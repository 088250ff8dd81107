"""Hydra's suites on other versions of Hydra, and its Optuna sweeper: each in an environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .test_sweeps import PROGRAM, runs
from .venvs import CHECKOUT, make_venv

pytestmark = [
    pytest.mark.flow,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("versions"),  # one after another: each keeps a machine busy
]

#: The oldest that is supported, the newest, and the next one.
VERSIONS = [
    ["hydra-core==1.3.2"],
    ["hydra-core==1.3.8"],
    ["hydra-core==1.4.0rc3", "omegaconf==2.4.1rc1"],
]


@pytest.mark.parametrize("packages", VERSIONS, ids=lambda packages: packages[0])
def test_hydras_suites_pass(tmp_path: Path, packages: list[str]) -> None:
    python = make_venv(tmp_path / "venv", *packages)
    suites = CHECKOUT / "tests" / "sweep" / "test_conformance.py"
    options = ["-q", "--whole", "-o", f"cache_dir={tmp_path / 'cache'}"]
    options += [f"--basetemp={tmp_path / 'base'}"]

    suite = subprocess.Popen(
        [str(python), "-m", "pytest", *options, str(suites)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = suite.communicate(timeout=3000)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(suite.pid, signal.SIGKILL)  # its sweeps too, where time ran out
        suite.wait()

    assert suite.returncode == 0, output[-5000:]


@pytest.fixture(scope="module")
def optuna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official sweeper for this Hydra, with current Optuna, which it would not ask for."""
    directory = tmp_path_factory.mktemp("optuna") / "venv"
    return make_venv(directory, "hydra-optuna-sweeper==1.3.0", "optuna", "colorlog", "tqdm")


def test_the_optuna_sweeper_gets_its_objective(cloud: Any, optuna: Path) -> None:
    shutil.copytree(PROGRAM, cloud.directory / "project")
    cloud.directory = cloud.directory / "project"
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3"]
    words += ["hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=1"]

    code, output = cloud.run(
        str(optuna),
        "app.py",
        "-m",
        "hydra/launcher=gce",
        *words,
        "x=interval(0.0, 10.0)",
        seconds=600,
    )

    assert code == 0, output
    parent, children = runs(cloud)
    assert [run.info.status for run in children] == ["FINISHED"] * 6
    values = [2 * float(run.data.params["x"]) for run in children]
    assert f"best_value: {max(values)}"[:16] in "".join(
        file.read_text() for file in cloud.directory.glob("multirun/*/*/optimization_results.yaml")
    )
    assert parent.data.tags["gce.sweep.best"] == parent.data.tags["gce.sweep.highest"]


def test_an_optuna_sweep_is_told_of_a_failed_trial(cloud: Any, optuna: Path) -> None:
    shutil.copytree(PROGRAM, cloud.directory / "project")
    cloud.directory = cloud.directory / "project"
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]

    code, output = cloud.run(
        str(optuna),
        "app.py",
        "-m",
        "hydra/launcher=gce",
        "hydra.sweeper.max_failure_rate=1.0",
        *words,
        "hydra/sweeper/sampler=grid",
        "how=choice(well,abort)",
        seconds=600,
    )

    assert code == 0, output
    _, children = runs(cloud)
    statuses = {run.data.params["how"]: run.info.status for run in children}
    assert statuses == {"well": "FINISHED", "abort": "FAILED"}
