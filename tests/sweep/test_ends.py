"""How a job ends here: proven in its bucket is done, whatever fails on the client afterwards."""

from __future__ import annotations

import io
import tarfile
import time
import types
from pathlib import Path
from typing import Any

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.backend import GceSubmittedRun
from gce_backend.config import Settings, load_settings
from gce_backend.console import Console
from gce_backend.lifecycle import EndReason
from gce_backend.runner import Limits, Runner
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.sweep.jobs import Jobs, SweepJob
from gce_backend.sweep.results import Outcome

pytestmark = pytest.mark.flow

RUN = "0123456789abcdef0123456789abcdef"
PATHS = RunPaths("mlflow-gce", RUN)


class Sweep:
    """What `Jobs` needs of a sweep; keeps what is said."""

    def __init__(self, storage: Storage, root: Path) -> None:
        self.storage, self.bundled_at = storage, time.time()
        self.plan = types.SimpleNamespace(root=root)
        self.warnings: list[str] = []
        self.noted: list[Outcome] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, job: Any, outcome: Outcome) -> None:
        self.noted.append(outcome)


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"output/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def sweep(environment: Any, tmp_path: Path) -> Sweep:
    return Sweep(Storage(environment.bucket, project=environment.emulator.project), tmp_path)


def ended(sweep: Sweep, outputs: bytes, *, verified: bool = True) -> tuple[Jobs, SweepJob]:
    """A job that completed on its instance, which is gone; its store does not answer."""
    storage = sweep.storage
    artifacts = f"experiments/e/{RUN}/artifacts"
    status = {"attempt": 1, "end_reason": "succeeded", "verified": verified, "exit_code": 0}
    storage.put_json(PATHS.status, status)
    storage.put_json(PATHS.manifest, {"attempt": 1, "objects": []})
    storage.put_json(f"{artifacts}/hydra/result.json", {"status": "COMPLETED", "value": 1.0})
    storage.put(f"{artifacts}/hydra/outputs.tar.gz", outputs)
    settings: Settings = load_settings(Path("/dev/null"))
    submission = Submission(
        run_id=RUN,
        project=settings.project,
        zone="europe-west1-b",
        instance=f"mlflow-{RUN}-1",
        bucket=settings.bucket,
        paths=PATHS,
        tracking_uri="http://127.0.0.1:9",
        deadline=4e9,
        created_at=time.time(),
    )
    job = SweepJob(
        3,
        settings,
        submission=submission,
        output_dir=sweep.plan.root / "out",
        run_id=RUN,
        artifact_uri=f"gs://{settings.bucket}/{artifacts}",
    )
    return Jobs(sweep, settings), job  # type: ignore[arg-type]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers that do not wait two minutes for a store."""

    def runner(handle: GceSubmittedRun, console: Console) -> Runner:
        limits = Limits(sync_seconds=0.0)
        return Runner(
            handle.submission, endpoints=handle._endpoints, console=console, limits=limits
        )

    monkeypatch.setattr(GceSubmittedRun, "runner", runner)


def test_a_job_whose_files_came_home_says_nothing(sweep: Sweep) -> None:
    jobs, job = ended(sweep, archive(note=b"well" * 100_000))

    jobs.fetch(job)

    assert (sweep.plan.root / "out" / "note").read_bytes() == b"well" * 100_000
    assert sweep.warnings == []


def broken_off(sweep: Sweep) -> bytes:
    return archive(note=bytes(range(256)) * 1000)[:-400]


def no_archive(sweep: Sweep) -> bytes:
    return b"this is none"


def no_directory(sweep: Sweep) -> bytes:
    (sweep.plan.root / "out").write_text("a file where the directory should be")
    return archive(note=b"well")


@pytest.mark.parametrize("trouble", [broken_off, no_archive, no_directory])
def test_files_that_cannot_be_fetched_are_told_of_and_fail_no_job(
    sweep: Sweep, trouble: Any, impatient: None
) -> None:
    jobs, job = ended(sweep, trouble(sweep))

    outcome, reason = jobs.finish(job)

    assert (outcome.completed, reason) == (True, EndReason.SUCCEEDED)
    (told,) = [text for text in sweep.warnings if "out" in text and "mlflow-gce pull" in text]
    assert told.startswith("job 3: its files are not in ")
    assert f"mlflow-gce pull {RUN}" in told


def test_a_proven_job_is_completed_though_its_store_is_away(sweep: Sweep, impatient: None) -> None:
    jobs, job = ended(sweep, archive(note=b"well"))

    outcome, reason = jobs.finish(job)

    assert (outcome.completed, outcome.problem, reason) == (True, "", EndReason.SUCCEEDED)
    (told,) = sweep.warnings
    assert told.startswith(f"job 3 completed; run {RUN} has ended")
    assert f"mlflow-gce sync {RUN}" in told


def test_without_proof_it_is_not(sweep: Sweep, impatient: None) -> None:
    jobs, job = ended(sweep, archive(note=b"well"), verified=False)

    outcome, reason = jobs.finish(job)

    assert (outcome.completed, reason) == (False, EndReason.RESULTS_UNVERIFIED)
