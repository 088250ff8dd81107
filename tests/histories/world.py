"""The world in which a history happens: its clock, its machines, and what goes wrong in it.

Time is the emulator's. The client's own code runs in this process; whenever it sleeps, time passes
and the world goes on: machines work, and what the history has planned for that moment happens. So
hours pass in seconds, and a history is told by its data alone.
"""

from __future__ import annotations

import contextlib
import threading
import time as real
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gce_backend.agent.paths import RUN_LABEL
from gce_backend.emulator import Emulator, Fault
from gce_backend.errors import StorageError
from gce_backend.storage import Storage

from .machine import Machine

_REAL_PAUSE = 0.002  # for the emulator's own tasks to get on
_OPERATION_SECONDS = 0.1  # real ones, that an operation without a fault takes at most


class Killed(BaseException):
    """The client's process is gone; nothing it does from here on has an effect."""


@dataclass
class Event:
    """Something that happens ``after`` so many of the client's sleeps.

    Args:
        what: a name of ``World._EVENTS``.
        fault: for the event ``fault``.
    """

    what: str
    after: int = 0
    fault: Fault | None = None
    number: int = 0


@dataclass
class Process:
    """A client's process: one command from its start to its end."""

    is_dead: bool = False
    calls: int = 0
    dies_before: int = -1  # the number of an HTTP call, from 0
    dies_after: int = -1


@dataclass
class World:
    """Everything outside of the client's code."""

    emulator: Emulator
    storage: Storage
    script: deque[Event] = field(default_factory=deque)
    causes: set[str] = field(default_factory=set)
    machines: dict[str, Machine] = field(default_factory=dict)  # by the instance's id
    violations: list[str] = field(default_factory=list)
    process: Process = field(default_factory=Process)
    haste: float = 10.0  # how much longer than asked for a client sleeps
    noticed: set[str] = field(default_factory=set)  # names that know of their preemption
    _waited: int = 0
    _alive: dict[str, dict[str, Any]] = field(default_factory=dict)
    _inside: threading.local = field(default_factory=threading.local)

    def begin(self) -> None:
        """Another history: nothing is left of the one before, whatever it came to."""
        for resource in self.emulator.instances():
            self.emulator.erase(str(resource["name"]))
        for left in (self.causes, self.machines, self.violations, self.noticed, self._alive):
            left.clear()
        self._waited = 0

    # ------------------------------------------------------------------ time, as a module has it

    def time(self) -> float:
        return self.emulator.now()

    monotonic = time
    strftime = staticmethod(real.strftime)
    localtime = staticmethod(real.localtime)
    gmtime = staticmethod(real.gmtime)
    perf_counter = staticmethod(real.perf_counter)

    def sleep(self, seconds: float) -> None:
        """What the client's modules call instead of ``time.sleep``."""
        if getattr(self._inside, "yes", False):
            return
        if threading.current_thread() is not threading.main_thread():
            self._sleep_aside(seconds)
            return
        self._die_if_dead()
        self.pass_(seconds * self.haste)
        self._die_if_dead()

    def _sleep_aside(self, seconds: float) -> None:
        """Another thread's: it waits for the time that the first one makes pass."""
        until, patience = self.time() + seconds, real.monotonic() + 0.3
        while self.time() < until and real.monotonic() < patience:
            self._die_if_dead()
            real.sleep(0.005)

    def _die_if_dead(self) -> None:
        if self.process.is_dead:
            raise Killed

    # ------------------------------------------------------------------ what happens meanwhile

    def pass_(self, seconds: float) -> None:
        """Let time pass; machines work, and what is due happens."""
        self._inside.yes = True
        try:
            self.emulator.advance(seconds)
            real.sleep(_REAL_PAUSE)
            self._waited += 1
            while self.script and self.script[0].after < self._waited:
                self._waited = 0
                self.happen(self.script.popleft())
            self.work()
        finally:
            self._inside.yes = False

    def work(self) -> None:
        """One step of every machine that runs."""
        resources = self.look()
        for resource in resources:
            if resource["status"] == "RUNNING":
                with contextlib.suppress(StorageError, urllib.error.URLError, OSError):
                    preempted = resource["name"] in self.noticed
                    self.machine(resource).step(self.time(), resource, preempted=preempted)

    def look(self) -> list[dict[str, Any]]:
        """The instances that exist, held against what may be."""
        resources = self.emulator.instances()
        found = {str(each["id"]): each for each in resources}
        for run_id in {each["labels"].get(RUN_LABEL) for each in resources}:
            names = [each["name"] for each in resources if each["labels"].get(RUN_LABEL) == run_id]
            if len(names) > 1:
                self.violations.append(f"at once: {names}")
        for number, resource in self._alive.items():
            if number not in found:
                self._judge_the_end_of(number, resource)
        self._alive = found
        return resources

    def machine(self, resource: dict[str, Any]) -> Machine:
        number = str(resource["id"])
        if number not in self.machines:
            self.machines[number] = Machine(self, self.storage, resource)
        return self.machines[number]

    def _judge_the_end_of(self, number: str, resource: dict[str, Any]) -> None:
        """An instance is gone: was it anybody's right to delete it?"""
        machine = self.machines.get(number)
        if machine is None or not machine.is_at_work or self.time() > machine.deadline:
            return
        if machine.is_taken:
            return  # Compute Engine deletes a spot instance that it takes, kept or not
        status = machine.status
        if status is not None and (status["verified"] or status["end_reason"] == "preempted"):
            return
        excuses = {"stop now", "user delete"}
        if status is None:
            excuses |= {"cancel"}
        if not self.causes & excuses:
            self.violations.append(f"{resource['name']} deleted, unproven, before its deadline")

    # ------------------------------------------------------------------ events

    def happen(self, event: Event) -> None:
        if event.what == "fault":
            assert event.fault is not None
            self.emulator.inject(event.fault)
            return
        if event.what in ("kill before call", "kill after call"):
            number = self.process.calls + event.number
            if event.what == "kill before call":
                self.process.dies_before = number
            else:
                self.process.dies_after = number
            return
        if event.what == "kill":
            self.causes.add("kill")
            self.process.is_dead = True
            return
        for resource in self.emulator.instances():
            self._strike(event.what, resource)

    def _strike(self, what: str, resource: dict[str, Any]) -> None:
        machine, name = self.machine(resource), str(resource["name"])
        path = f"projects/{self.emulator.project}/zones/{machine.zone}/instances/{name}"
        with contextlib.suppress(KeyError, ValueError, urllib.error.URLError):
            if what in ("hang", "lose", "fail"):
                machine.hangs |= what == "hang"
                machine.loses |= what == "lose" and machine.status is None
                machine.fails |= what == "fail"
            elif what.startswith("preempt"):
                if what == "preempt with notice" and resource["status"] == "RUNNING":
                    self.noticed.add(name)
                    with contextlib.suppress(StorageError, OSError):
                        machine.step(self.time(), resource, preempted=True)
                self.emulator.preempt(name)
                machine.is_taken = True
            elif what == "host error":
                self.emulator.power_off(name)
            elif what == "user stop":
                self._call("POST", f"{path}/stop")
            elif what == "user delete":
                self._call("DELETE", path)
            else:
                raise AssertionError(what)
            self.causes.add(what)

    # ------------------------------------------------------------------ for machines

    def delete_instance(self, zone: str, name: str) -> None:
        path = f"projects/{self.emulator.project}/zones/{zone}/instances/{name}"
        self._call("DELETE", path)

    def _call(self, method: str, path: str) -> None:
        url = f"{self.emulator.compute_url}{path}"
        request = urllib.request.Request(url, data=b"" if method == "POST" else None, method=method)
        urllib.request.urlopen(request, timeout=10).close()

    # ------------------------------------------------------------------ the client's HTTP

    def sending(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """``HTTPAdapter.send``, at which a client may die, and which waits in the world's time."""

        def sent(adapter: Any, request: Any, **options: Any) -> Any:
            if getattr(self._inside, "yes", False):
                return send(adapter, request, **options)
            self._die_if_dead()
            process = self.process
            is_first = threading.current_thread() is threading.main_thread()
            number = process.calls
            process.calls += is_first
            if is_first and number == process.dies_before:
                self._kill()
            if request.url.partition("?")[0].endswith("/wait"):
                answer = self._waiting(send, adapter, request, options)
            else:
                answer = send(adapter, request, **options)
            if is_first and number == process.dies_after:
                self._kill()
            return answer

        return sent

    def _kill(self) -> None:
        self.causes.add("kill")
        self.process.is_dead = True
        raise Killed

    def _waiting(self, send: Any, adapter: Any, request: Any, options: Any) -> Any:
        """``operations.wait``: up to two minutes, which need not be real ones."""
        request.method = "GET"
        request.url = request.url.replace("/wait", "", 1)
        request.headers.pop("Content-Length", None)
        patience = real.monotonic() + _OPERATION_SECONDS
        while True:
            answer = send(adapter, request, **options)
            if not answer.ok or answer.json().get("status") == "DONE":
                return answer
            if real.monotonic() > patience:
                self.sleep(60)
                return answer
            real.sleep(0.01)


@contextlib.contextmanager
def lived_in(world: World, patch: Any, modules: Iterator[Any]) -> Iterator[World]:
    """The client's code has the world's clock, and its calls go through it."""
    import google.api_core.retry.retry_unary
    import requests.adapters

    for module in (*modules, google.api_core.retry.retry_unary):
        patch.setattr(module, "time", world)
    adapter = requests.adapters.HTTPAdapter
    patch.setattr(adapter, "send", world.sending(adapter.send))
    yield world
