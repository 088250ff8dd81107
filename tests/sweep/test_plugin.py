"""The plugin in Hydra's eyes, and jobs as files: no instance needed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HEAVY = ("google", "mlflow", "torch", "gce_backend", "cloudpickle", "requests")


def python(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hydras_start_imports_nothing_heavy_for_it(tmp_path: Path) -> None:
    code = """
import sys
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
print([found.__name__ for found in Plugins.instance().discover(Launcher)])
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""

    plugins, modules = python(code, tmp_path).splitlines()

    assert "GceLauncher" in plugins
    assert [name for name in HEAVY if repr(name) in modules] == []


PROGRAM = """
import threading, sys, hydra
LOCK = threading.Lock()

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    return 1

def inner():
    def main(cfg):
        return 2
    return main

from pathlib import Path
from gce_backend.sweep.payload import describe_task
task = describe_task(main.__wrapped__, Path.cwd())
local = describe_task(inner(), Path.cwd())
print(task.reference, task.main, local.reference)
"""


@pytest.mark.parametrize(("guard", "by_name"), [(True, True), (False, False)])
def test_a_function_goes_by_its_name_where_importing_its_program_only_defines(
    tmp_path: Path, guard: bool, by_name: bool
) -> None:
    program = tmp_path / "program.py"
    call = "if __name__ == '__main__':\n    main()\n" if guard else "main()\n"
    program.write_text(PROGRAM + call)

    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    reference = "{'module': '__main__', 'qualname': 'main', 'wrapped': 1}"
    expected = f"{reference} {{'module': '', 'path': '{program}'}} None"
    assert done.stdout.strip() == (expected if by_name else "None None None"), done.stderr


def test_a_function_by_value_keeps_its_files_name(tmp_path: Path) -> None:
    code = """
import pickle
from gce_backend.sweep.payload import _by_value
def outer():
    def inner():
        return inner.__code__.co_filename
    return inner
print(pickle.loads(_by_value(outer()))())
"""
    (tmp_path / "named.py").write_text(code)

    done = subprocess.run(
        [sys.executable, "named.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert done.stdout.strip().endswith("named.py"), done.stderr


def test_a_job_holds_no_class_of_this_machines_plugins(tmp_path: Path) -> None:
    code = """
import enum
from pathlib import Path
from hydra import compose, initialize
from hydra.core.utils import JobRuntime, setup_globals
from hydra.core.hydra_config import HydraConfig
from gce_backend.sweep.payload import describe_task, job_archive
setup_globals()
class Direction(enum.Enum):  # as the Optuna sweeper has one, which no instance can load
    here_alone = 1
with initialize(version_base="1.3", config_path=None):
    config = compose(overrides=["hydra/launcher=gce", "+x=1"], return_hydra_config=True)
config.hydra.launcher.gce = {"direction": Direction.here_alone}
Path("job.pyz").write_bytes(job_archive(describe_task(lambda cfg: 1, Path.cwd()), config))
"""
    python(code, tmp_path)

    with zipfile.ZipFile(tmp_path / "job.pyz") as archive:
        pickled, facts = archive.read("job.pkl"), json.loads(archive.read("facts.json"))

    assert b"GceLauncherConf" not in pickled
    assert b"BasicSweeperConf" not in pickled
    assert b"Direction" not in pickled
    assert facts["root"] == str(tmp_path)
