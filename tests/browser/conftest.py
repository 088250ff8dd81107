"""Runs that really trained, MLflow's UI on them as `make ui` starts it, and a browser.

A browser that is not there skips the stories; in CI that is a failure. With PICTURES=DIRECTORY the
stories keep what they saw: `make pictures` renews those of the documentation.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from trainer_copy import CHECKOUT, copy_trainer

from gce_backend.emulator.ports import free_port

EPOCHS = 6
SETTINGS = f"data=digits trainer.batch_size=32 trainer.epochs={EPOCHS}"
TRAININGS = f"""
mlflow run . --backend gce --run-name first -P epochs={EPOCHS} -P batch_size=32 \
    -P overrides=data=digits
python train.py -m optimizer.lr=0.2,0.05,0.01 {SETTINGS} hydra/launcher=gce \
    hydra.launcher.direction=maximize hydra.launcher.register=digits
"""
PATIENCE_MS = 40_000  # a page asks the server a dozen times, and the machine may be busy
# No sandbox for root, no GPU, and nothing that calls home: the network may be closed.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A browser that has seen nothing yet, but for MLflow's assistant: it covers a quarter of a page.
NEW_BROWSER = """
localStorage.clear();
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


@dataclass(frozen=True)
class Ui:
    """MLflow's server, and what its store has."""

    url: str
    experiment: str
    run: Any  # of `mlflow run`
    parent: Any  # of the sweep
    children: list[Any]
    client: MlflowClient


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    home = tmp_path_factory.mktemp("ui")
    environ = _prepared(home)
    inside = ["mlflow-gce", "emulator", "exec", "--root", ".gce-emulator", "--boot-seconds", "0.1"]
    subprocess.run(
        [*inside, "--", "bash", "-ec", TRAININGS], cwd=home, env=environ, check=True, timeout=450
    )
    port = free_port()
    # As the Makefile has it, with this Python's environment in the place of its own.
    words = [f"VENV={sys.prefix}", f"PORT={port}", "-o", f"{sys.prefix}/.installed"]
    server = subprocess.Popen(
        ["make", "-f", str(CHECKOUT / "Makefile"), *words, "ui"],
        cwd=home,
        env=environ,
        start_new_session=True,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}", server)
        yield _found(home, f"http://127.0.0.1:{port}")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _prepared(home: Path) -> dict[str, str]:
    """The project's training side in ``home``, and the environment of a user without settings."""
    copy_trainer(home)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "GOOGLE_"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "XDG_STATE_HOME": str(home / "state"),
    }


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.2)


def _found(home: Path, url: str) -> Ui:
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("mlflow-gce")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = (run for run in runs if run.info.run_name == "sweep-train")
    (first,) = (run for run in runs if run.info.run_name == "first")
    return Ui(url, experiment.experiment_id, first, parent, children, client)


@pytest.fixture(scope="module")
def _page(ui: Ui) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 760})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page.add_init_script(NEW_BROWSER)
        yield page
        browser.close()


@pytest.fixture
def page(_page: Page) -> Page:
    """One tab for all stories: MLflow's page takes long to load, and not to move about in."""
    _page.goto("about:blank")
    return _page


def keep(page: Page, name: str) -> None:
    """The page as a small PNG, where PICTURES says; otherwise nothing."""
    if directory := os.environ.get("PICTURES"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(700)  # charts move into their places
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(96, dither=Image.Dither.NONE).save(
            Path(directory, f"{name}.png"), optimize=True
        )
