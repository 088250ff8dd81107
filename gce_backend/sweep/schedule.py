"""Which of a sweep's jobs gets an instance next, and which has ended: one list asks for all.

::

    waiting ──▶ starting ──▶ running ──▶ ending ──▶ its future has the outcome
       ▲            │                       │
       └── no room ─┴── infrastructure ─────┘

Knows nothing of Hydra or MLflow; what a job is and does stands behind ``JobWork``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from gce_backend.config import Settings
from gce_backend.errors import ComputeError, GceBackendError, NoCapacity, QuotaExceeded
from gce_backend.lifecycle import EndReason
from gce_backend.sweep.capacity import Capacity
from gce_backend.sweep.results import Outcome
from gce_backend.sweep.work import Job, JobWork

# So many jobs are started, looked into and ended at once: that is waiting, mostly.
_AT_ONCE = 64
# What failed for reasons of the infrastructure.
# Preempted runs are none of them: whoever follows one asks for its next attempt.
_AGAIN = (EndReason.BOOT_TIMEOUT, EndReason.SUBMIT_FAILED)
_MOST_ATTEMPTS = 3
_MOST_REFUSALS = 10
_LOOK_SECONDS = 15.0  # between two looks into the bucket, for one job …
_LOOKS_APART_SECONDS = 0.5  # … and on average between those for any two
_GONE = ("TERMINATED", "STOPPED", "SUSPENDED")


class Scheduler:
    """Runs jobs as capacity allows, from a thread of its own, until it is told to `leave`.

    Args:
        pause: the least seconds between two listings.
    """

    def __init__(
        self,
        work: JobWork,
        capacity: Capacity,
        *,
        max_parallel: int | None,
        pause: float = 1.0,
        first_pause: float = 5.0,
    ) -> None:
        self._work, self._capacity = work, capacity
        self._max_parallel = max_parallel
        self._least_pause = pause
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._waiting: deque[Job] = deque()
        self._starting: dict[int, Job] = {}
        self._running: dict[int, Job] = {}
        self._ending: dict[int, Job] = {}
        self._leaving = False
        self._at_once = threading.Semaphore(_AT_ONCE)
        self._trouble = ""
        self._told_quotas: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._loop, name="mlflow-gce-sweep", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> Future[Outcome]:
        """Queue a job. Its future gets the outcome, of a failed job as well.

        Once the sweep has been left the future is cancelled: nobody is there to complete it.
        """
        with self._lock:
            if self._leaving:
                job.future.cancel()
            elif job.adopted is not None:
                job.submission, job.started_at = job.adopted, time.monotonic()
                self._running[job.number] = job
            else:
                self._waiting.append(job)
        self._wake.set()
        return job.future

    def leave(self, *, seconds: float = 60.0) -> list[Job]:
        """Start nothing more, wait for what is being started; the jobs that go on by themselves."""
        with self._lock:
            self._leaving = True
            waiting = list(self._waiting)
            self._waiting.clear()
        self._wake.set()
        until = time.monotonic() + seconds
        while self._starting and time.monotonic() < until:
            time.sleep(0.05)
        with self._lock:
            going = [*self._starting.values(), *self._running.values()]
            ending = list(self._ending.values())
        for job in (*waiting, *going):
            job.future.cancel()  # another thread may wait for it
        for job in waiting:
            self._work.abandon(job)
        return [*going, *ending]

    # -- the thread ---------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._leaving:
            self._wake.clear()
            try:
                self._start_waiting()
                self._look_after_running()
            except Exception as error:  # whatever it is, jobs run and somebody waits for them
                self._tell(str(error) if isinstance(error, GceBackendError) else repr(error))
            else:
                self._trouble = ""
            self._wake.wait(self._pause())

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._work.warn(f"{trouble}\nThe running jobs go on; looking again")

    def _in_background(self, work: Callable[[], None]) -> None:
        """In a thread that keeps no process alive: following an attempt can take hours."""

        def run() -> None:
            with self._at_once:
                work()

        threading.Thread(target=run, name="mlflow-gce-job", daemon=True).start()

    def _pause(self) -> float:
        """Short jobs are looked at often, long ones every few seconds."""
        with self._lock:
            ages = [time.monotonic() - job.started_at for job in self._running.values()]
        if not ages:
            return 3.0 if self._starting or not self._waiting else self._least_pause
        return max(self._least_pause, min(3.0, min(ages) / 20))

    def _start_waiting(self) -> None:
        full: list[Settings] = []  # what no region has room for now
        while (job := self._next(full)) is not None:
            settings = self._capacity.reserve(job.number, job.settings)
            if settings is None:
                full.append(job.settings)
                self._tell_shortage(job)
            else:
                self._start_in_background(job, settings)
        with self._lock:
            is_idle = not (self._starting or self._running or self._ending)
        # Nothing of ours will make room, so the figures alone must not decide: Compute Engine's own
        # answer starts the job, or ends it.
        if full and is_idle and (job := self._next([])) is not None:
            settings = self._capacity.reserve(job.number, job.settings, anyway=True)
            self._start_in_background(job, settings or job.settings)

    def _next(self, full: list[Settings]) -> Job | None:
        """The first waiting job that may start now, but for those of these settings."""
        with self._lock:
            at_work = len(self._starting) + len(self._running) + len(self._ending)
            is_full = self._max_parallel is not None and at_work >= self._max_parallel
            if is_full or self._leaving:
                return None
            now = time.monotonic()
            ready = (job for job in self._waiting if job.not_before <= now)
            return next((job for job in ready if job.settings not in full), None)

    def _tell_shortage(self, job: Job) -> None:
        """Say once what is lacking, and where that is shown."""
        lacking = self._capacity.lacking(job.settings)
        quotas = {(each.region, each.metric) for each in lacking}
        if quotas <= self._told_quotas:
            return
        self._told_quotas |= quotas
        self._work.warn(
            f"job {job.number} waits for room: it takes {'; '.join(map(str, lacking))}. See:\n"
            f"  gcloud compute regions describe {lacking[0].region} "
            f"--project {job.settings.project}"
        )

    def _start_in_background(self, job: Job, settings: Settings) -> None:
        with self._lock:
            if job not in self._waiting:
                self._capacity.release(job.number)
                return  # the sweep has been left meanwhile
            self._waiting.remove(job)
            self._starting[job.number] = job
        start = functools.partial(self._start, job, settings)
        self._in_background(functools.partial(self._guarded, job, start))

    def _start(self, job: Job, settings: Settings) -> None:
        job.attempts += 1
        try:
            submission = self._work.submit(job, settings)
        except (NoCapacity, QuotaExceeded) as error:
            self._capacity.release(job.number)
            self._refused(job, error)
            return
        except GceBackendError as error:
            self._capacity.release(job.number)
            if not _may_pass(error) or not self._tried_again(job, str(error)):
                raise
            return
        self._capacity.exists(job.number)
        if job.detached:
            job.submission = submission
            self._done(job, self._work.submitted(job))
            return
        with self._lock:
            job.submission, job.started_at = submission, time.monotonic()
            job.looked_at = time.monotonic()
            self._running[job.number] = job
            self._starting.pop(job.number, None)
        self._wake.set()

    def _refused(self, job: Job, error: GceBackendError) -> None:
        """Wait for room: where others of ours run, their end makes some."""
        job.attempts -= 1
        job.refusals += 1
        with self._lock:
            alone = not self._running and not self._ending
            most = 3 if alone and isinstance(error, QuotaExceeded) else _MOST_REFUSALS
            give_up = self._leaving or (job.refusals >= most and alone)
            self._starting.pop(job.number, None)
            if not give_up:
                wait = min(300.0, self._first_pause * 2 ** min(job.refusals - 1, 6))
                job.not_before = time.monotonic() + wait
                self._waiting.append(job)
        if give_up:
            self._done(job, self._work.failed(job, error))
        else:
            self._work.warn(f"job {job.number} waits for room: {error}")

    def _look_after_running(self) -> None:
        asked_at = time.monotonic()
        with self._lock:
            running = list(self._running.values())
        if not running:
            return
        found = self._work.list()
        look_after = max(_LOOK_SECONDS, len(running) * _LOOKS_APART_SECONDS)
        for job in running:
            assert job.submission is not None
            if job.is_being_looked_at:
                continue  # what the look still writes must not come after the end
            status = found.get(job.submission.instance)
            if (status is None or status in _GONE) and job.started_at < asked_at:
                self._take_to_end(job, ask=status is None)
            elif asked_at - job.looked_at > look_after:
                job.is_being_looked_at = True
                self._in_background(functools.partial(self._look, job))

    def _look(self, job: Job) -> None:
        try:
            if self._work.look(job):
                self._take_to_end(job, ask=False)
        except GceBackendError as error:
            self._work.warn(f"job {job.number}: {error}\nIt goes on; looking again")
        finally:
            job.looked_at = time.monotonic()
            job.is_being_looked_at = False

    def _take_to_end(self, job: Job, *, ask: bool) -> None:
        with self._lock:
            if self._running.pop(job.number, None) is None:
                return
            self._ending[job.number] = job
        end = functools.partial(self._end, job, ask)
        self._in_background(functools.partial(self._guarded, job, end))

    def _end(self, job: Job, ask: bool) -> None:
        if ask and self._work.exists(job):  # the list was not whole
            with self._lock:
                self._ending.pop(job.number, None)
                job.looked_at = 0.0
                self._running[job.number] = job
            return
        outcome, reason = self._work.finish(job)
        self._capacity.release(job.number)
        if reason in _AGAIN and self._tried_again(job, reason.value.replace("_", " ")):
            return
        self._done(job, outcome)

    def _tried_again(self, job: Job, why: str) -> bool:
        """Queue the job once more; False when it has had its attempts."""
        with self._lock:
            if job.attempts >= _MOST_ATTEMPTS or not job.may_start or self._leaving:
                return False
            self._starting.pop(job.number, None)
            self._ending.pop(job.number, None)
            job.submission, job.adopted = None, None
            job.not_before = time.monotonic() + self._first_pause
            self._waiting.append(job)
        self._work.warn(f"job {job.number}: {why}; tried again")
        self._wake.set()
        return True

    def _guarded(self, job: Job, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # told as this job's failure: the others go on
            self._capacity.release(job.number)
            self._done(job, self._work.failed(job, error))

    def _done(self, job: Job, outcome: Outcome) -> None:
        with self._lock:
            self._starting.pop(job.number, None)
            self._ending.pop(job.number, None)
        with contextlib.suppress(InvalidStateError):  # cancelled, as the sweep has been left
            job.future.set_result(outcome)
        self._wake.set()


def _may_pass(error: GceBackendError) -> bool:
    """Whether another try may go well: an internal error or a lost answer, but no clear refusal."""
    return error.transient or type(error) is ComputeError
