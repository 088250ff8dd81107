"""The wheel: a client without torch, with the presets of projects that have no conf/."""

import subprocess
import sys
import zipfile

import pytest
from conftest import CHECKOUT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(directory)]
    subprocess.run([*pip, str(CHECKOUT)], check=True)
    (file,) = directory.glob("mlflow_gce-*.whl")
    return zipfile.ZipFile(file)


def test_it_carries_the_presets_and_what_runs_on_the_instance(wheel):
    names = set(wheel.namelist())

    presets = {f"gce_backend/conf/machine/{p.name}" for p in CHECKOUT.glob("conf/machine/*.yaml")}
    assert presets
    assert presets <= names
    assert {
        "gce_backend/conf/gce/default.yaml",
        "gce_backend/startup.sh",
        "gce_backend/agent/main.py",
        "gce_backend/py.typed",
    } <= names


def test_a_client_needs_no_torch(wheel):
    (metadata,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    requirements = [
        line.removeprefix("Requires-Dist: ")
        for line in wheel.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist: ")
    ]

    needed = [line for line in requirements if "extra ==" not in line]
    assert any(line.startswith("mlflow") for line in needed)
    assert not any(line.startswith(("torch", "aiohttp", "matplotlib")) for line in needed)


def test_it_announces_itself_to_mlflow(wheel):
    (entry_points,) = [n for n in wheel.namelist() if n.endswith("/entry_points.txt")]

    text = wheel.read(entry_points).decode()

    assert "[mlflow.project_backend]\ngce = gce_backend.backend:GceBackend" in text
    assert "mlflow-gce = gce_backend.cli:main" in text
