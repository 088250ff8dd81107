"""Which job is next: the scheduler with instances that are entries in a dictionary."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.errors import ComputeError, NoCapacity, PermissionDenied, QuotaExceeded
from gce_backend.lifecycle import EndReason
from gce_backend.submission import Submission
from gce_backend.sweep import schedule
from gce_backend.sweep.capacity import Capacity
from gce_backend.sweep.results import Outcome
from gce_backend.sweep.schedule import Scheduler
from gce_backend.sweep.work import Job

from .test_capacity import settings


class Work:
    """A cloud whose instances end when the test says so."""

    def __init__(self) -> None:
        self.instances: dict[str, str] = {}
        self.submitted_jobs: list[int] = []
        self.ends: dict[int, list[EndReason]] = defaultdict(lambda: [EndReason.SUCCEEDED])
        self.errors: dict[int, list[Exception]] = defaultdict(list)
        self.most = 0
        self.abandoned: list[int] = []
        self.warnings: list[str] = []
        self.lock = threading.Lock()

    def list(self) -> dict[str, str]:
        with self.lock:
            return dict(self.instances)

    def submit(self, job: Any, settings: Any) -> Submission:
        if self.errors[job.number]:
            raise self.errors[job.number].pop(0)
        name = f"instance-{job.number}-{job.attempts}"
        with self.lock:
            self.submitted_jobs.append(job.number)
            self.instances[name] = "RUNNING"
            self.most = max(self.most, len(self.instances))
        paths = RunPaths("mlflow-gce", "r")
        return Submission("r", "p", "z", name, "b", paths, "sqlite://", 0.0, 0.0)

    def look(self, job: Any) -> bool:
        return False

    def exists(self, job: Any) -> bool:
        return job.submission.instance in self.instances

    def finish(self, job: Any) -> tuple[Outcome, EndReason]:
        reason = self.ends[job.number].pop(0)
        told = {"status": "COMPLETED"} if reason is EndReason.SUCCEEDED else {}
        return Outcome("r", told, "" if told else reason.value), reason

    def failed(self, job: Any, error: BaseException) -> Outcome:
        return Outcome("", {}, str(error))

    def submitted(self, job: Any) -> Outcome:
        return Outcome("r", {"status": "SUBMITTED"})

    def abandon(self, job: Any) -> None:
        self.abandoned.append(job.number)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def end(self, name: str) -> None:
        with self.lock:
            self.instances.pop(name)


@pytest.fixture
def work() -> Work:
    return Work()


Make = Callable[..., Scheduler]


@pytest.fixture
def scheduler(work: Work) -> Iterator[Make]:
    made: list[Scheduler] = []

    def make(**options: Any) -> Scheduler:
        free = options.pop("free", {"CPUS": 1000.0})
        capacity = Capacity(lambda region: dict(free))
        options.setdefault("max_parallel", None)
        made.append(Scheduler(work, capacity, pause=0.01, first_pause=0.01, **options))
        return made[-1]

    yield make
    for one in made:
        one.leave(seconds=5)


def until(check: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not check():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_never_more_than_allowed_run_and_others_follow(work: Work, scheduler: Make) -> None:
    jobs = [Job(number, settings()) for number in range(6)]
    made = scheduler(max_parallel=2)
    futures = [made.add(job) for job in jobs]
    until(lambda: len(work.instances) == 2)

    for number in range(6):
        until(lambda n=number: f"instance-{n}-1" in work.instances)
        work.end(f"instance-{number}-1")

    assert all(future.result(timeout=10).completed for future in futures)
    assert work.most == 2
    assert work.submitted_jobs == list(range(6))


def test_what_a_look_still_writes_comes_before_the_end(
    work: Work, scheduler: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run that has ended would be marked as running, for ever."""
    monkeypatch.setattr(schedule, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(schedule, "_LOOKS_APART_SECONDS", 0.0)
    looking, go_on, written = threading.Event(), threading.Event(), []
    lists, finish = work.list, work.finish
    asked = 0

    def listed() -> dict[str, str]:
        nonlocal asked
        asked += 1
        return lists()

    def look(job: Any) -> bool:
        looking.set()
        go_on.wait(10)
        written.append("running")
        return False

    def finished(job: Any) -> tuple[Outcome, EndReason]:
        written.append("finished")
        return finish(job)

    for name, function in (("list", listed), ("look", look), ("finish", finished)):
        monkeypatch.setattr(work, name, function)
    future = scheduler().add(Job(0, settings()))
    assert looking.wait(10)
    work.end("instance-0-1")
    before = asked
    until(lambda: asked > before + 2)  # it is seen to be gone, and the look has not returned
    go_on.set()

    assert future.result(timeout=10).completed
    assert written[-1] == "finished", written


def test_a_job_whose_instance_never_reported_is_tried_again_and_a_failing_one_is_not(
    work: Work, scheduler: Make
) -> None:
    work.ends[0] = [EndReason.BOOT_TIMEOUT, EndReason.SUCCEEDED]
    work.ends[1] = [EndReason.EXITED_NONZERO]
    made = scheduler()
    first, second = made.add(Job(0, settings())), made.add(Job(1, settings()))
    until(lambda: len(work.instances) == 2)

    work.end("instance-0-1")
    work.end("instance-1-1")

    until(lambda: "instance-0-2" in work.instances)
    assert second.result(timeout=10).problem == "exited_nonzero"
    work.end("instance-0-2")
    assert first.result(timeout=10).completed


def test_a_job_that_is_only_followed_is_not_tried_again(work: Work, scheduler: Make) -> None:
    left = Job(0, settings(), may_start=False)
    left.adopted = work.submit(left, left.settings)
    work.ends[0] = [EndReason.BOOT_TIMEOUT]
    followed = scheduler().add(left)

    work.end("instance-0-0")

    assert followed.result(timeout=10).problem == "boot_timeout"
    assert work.submitted_jobs == [0]


def test_an_insert_that_fails_inside_is_tried_again_and_a_refused_one_is_not(
    work: Work, scheduler: Make
) -> None:
    work.errors[0] = [ComputeError("INTERNAL_ERROR")]
    work.errors[1] = [PermissionDenied("you may not")]
    work.errors[2] = [ComputeError("INTERNAL_ERROR") for _ in range(20)]
    made = scheduler()

    first, refused, hopeless = (made.add(Job(number, settings())) for number in range(3))

    assert refused.result(timeout=10).problem == "you may not"
    assert hopeless.result(timeout=10).problem == "INTERNAL_ERROR"
    assert len(work.errors[2]) == 17
    until(lambda: "instance-0-2" in work.instances)
    work.end("instance-0-2")
    assert first.result(timeout=10).completed


def test_a_job_without_room_waits_and_is_given_up_when_nobody_else_could_make_some(
    work: Work, scheduler: Make
) -> None:
    work.errors[0] = [NoCapacity("full"), NoCapacity("full")]
    work.errors[1] = [QuotaExceeded("none at all", is_global=True) for _ in range(20)]
    made = scheduler()

    hopeless = made.add(Job(1, settings()))

    assert "none at all" in hopeless.result(timeout=10).problem
    patient = made.add(Job(0, settings()))
    until(lambda: work.instances)
    work.end("instance-0-1")
    assert patient.result(timeout=10).completed


def test_a_job_that_no_quota_allows_lets_others_pass_and_then_gets_the_clouds_own_answer(
    work: Work, scheduler: Make
) -> None:
    work.errors[0] = [QuotaExceeded("none at all") for _ in range(20)]
    made = scheduler(free={"CPUS": 4.0})
    first = made.add(Job(1, settings()))
    until(lambda: "instance-1-1" in work.instances)

    large = made.add(Job(0, settings(machine_type="n1-standard-8")))
    second = made.add(Job(2, settings()))

    until(lambda: "instance-2-1" in work.instances)
    (told,) = work.warnings
    assert told.startswith("job 0 waits for room: it takes 8 of CPUS in europe-west1, ")
    assert "gcloud compute regions describe europe-west1 --project p" in told
    work.end("instance-1-1")
    assert first.result(timeout=10).completed
    assert not large.done()
    work.end("instance-2-1")
    assert second.result(timeout=10).completed
    assert large.result(timeout=10).problem == "none at all"
    assert len([text for text in work.warnings if "8 of CPUS" in text]) == 1


def test_a_bug_in_the_work_fails_that_job_alone(work: Work, scheduler: Make) -> None:
    work.errors[0] = [ZeroDivisionError("a bug")]
    made = scheduler()

    broken, well = made.add(Job(0, settings())), made.add(Job(1, settings()))

    assert broken.result(timeout=10).problem == "a bug"
    until(lambda: "instance-1-1" in work.instances)
    work.end("instance-1-1")
    assert well.result(timeout=10).completed


def test_leaving_starts_nothing_more_and_tells_what_goes_on(work: Work, scheduler: Make) -> None:
    made = scheduler(max_parallel=1)
    futures = [made.add(Job(number, settings())) for number in range(3)]
    until(lambda: work.instances)

    left = made.leave()

    assert [job.number for job in left] == [0]
    assert list(work.instances) == ["instance-0-1"]
    assert work.abandoned == [1, 2]
    assert all(future.cancelled() for future in futures), "somebody waits for what never comes"


def test_a_job_that_is_refused_while_its_sweep_is_left_is_not_queued_again(
    work: Work, scheduler: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, go_on = threading.Event(), threading.Event()

    def submit(job: Any, settings: Any) -> Submission:
        asking.set()
        go_on.wait(10)
        raise NoCapacity("full")

    monkeypatch.setattr(work, "submit", submit)
    made = scheduler()
    future = made.add(Job(0, settings()))
    assert asking.wait(10)
    leaving = threading.Thread(target=made.leave)
    leaving.start()
    until(lambda: made._leaving)
    go_on.set()

    assert future.result(timeout=10).problem == "full"
    leaving.join()
