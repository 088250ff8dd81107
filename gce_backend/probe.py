"""One small instance for a minute, which finds out what can only be known from inside.

It is asked for as a run's would be - image, network, service account, scopes - under labels that
`ps` and `reap` know, and with a run time after which Compute Engine deletes it. Whoever creates it
here deletes it here, whatever happens in between.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

from gce_backend.agent.paths import NAME_ATTRIBUTE, SPEC_ATTRIBUTE, RunPaths
from gce_backend.budget import usd_per_hour
from gce_backend.compute import Compute
from gce_backend.config import Settings
from gce_backend.errors import (
    AlreadyExists,
    ComputeError,
    InstanceNotFound,
    NoCapacity,
    PermissionDenied,
    SshError,
    SshUnavailable,
)
from gce_backend.instance import Agent, insert_body, instance_name, lifetime_seconds
from gce_backend.polling import DeadlinePassed, retry, wait_until
from gce_backend.prices import Price, price_date
from gce_backend.probe_script import MARK
from gce_backend.shipment import ship_uv
from gce_backend.ssh_route import Route
from gce_backend.storage import Storage

MACHINE_TYPE = "e2-small"
_LIFETIME_SECONDS = 480  # after these Compute Engine deletes it, whatever becomes of us
_SLACK_SECONDS = 300  # from the insert to RUNNING, for the label that `reap` goes by
_ANSWER_SECONDS = 300.0  # an image with drivers boots for minutes
_SSH_SECONDS = 10.0
_USUAL_SECONDS = 90.0


class Interrupted(BaseException):
    """A signal came, and the instance was dealt with; no library may take it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a probe found out.

    Args:
        said: question -> ``{"ok": bool, "detail": str}``, for each that was answered.
        silence: why there is nothing of the others.
    """

    said: dict[str, dict[str, Any]]
    silence: str = ""


class Probe:
    """The instance to start.

    Args:
        questions: keys of ``probe_script``'s checks, and ``ssh``, which is tried from here.
        tracking_uri: the server that the question ``tracking`` is about.
        say: gets a line for each step.

    Attributes:
        left: once it has run, what may still bill, and the command that ends it; "" for nothing.
    """

    def __init__(
        self,
        settings: Settings,
        questions: list[str],
        *,
        tracking_uri: str = "",
        say: Callable[[str], None],
    ) -> None:
        machine = dataclasses.replace(
            settings.machine,
            machine_type=MACHINE_TYPE,
            disk_type="pd-balanced",  # hyperdisk does not go with it
            spot=False,
            gpus=0,
            accelerator_type=None,
        )
        gce = dataclasses.replace(
            settings.gce, max_hours=_LIFETIME_SECONDS / 3600, rescue_minutes=0.0
        )
        self._settings = dataclasses.replace(settings, machine=machine, gce=gce)
        self._questions = questions
        self._tracking_uri = tracking_uri
        self._say = say
        self._paths = RunPaths(gce.prefix, f"probe-{uuid.uuid4().hex[:8]}")
        self._name = instance_name(self._paths.run_id, 1)
        self._compute = Compute(settings.project, endpoint=settings.endpoints.compute)
        self._storage = Storage(settings.bucket, project=settings.project)
        self.left = ""

    def offer(self) -> str:
        """What would be started, and what that costs: an estimate."""
        zone = self._settings.zones[0]
        usd = usd_per_hour(self._settings, zone)
        cost = "at a price that is not known for this region"
        if usd is not None:
            usual, most = (Price(usd).cost(s) for s in (_USUAL_SECONDS, _LIFETIME_SECONDS))
            cost = (
                f"for about ${usual:.4f} (${most:.4f} at most; estimates by list prices of "
                f"{price_date()})"
            )
        return (
            f"one {MACHINE_TYPE} in {zone} for a minute or two, {cost}. It is deleted at the end; "
            f"by Compute Engine itself after {_LIFETIME_SECONDS // 60} minutes"
        )

    def run(self) -> Answers:
        """Start the instance, hear it, delete it.

        Raises:
            Interrupted: a signal came.
            ComputeError: it could not be created.
            StorageError: uv could not be put into the bucket; nothing was created.
        """
        with tempfile.TemporaryDirectory(prefix="mlflow-gce-") as scratch:
            uv = ship_uv(self._storage, self._paths, Path(scratch))
        for zone in self._settings.zones:
            try:
                with self._deleted(zone):
                    self._compute.insert(zone, self._body(zone, uv))
                    self._say(f"{self._name} created in {zone}; it boots, and looks around")
                    return self._hear(zone)
            except NoCapacity as error:
                self._say(f"{error}; trying the next zone")
        raise NoCapacity(f"no zone has room for {MACHINE_TYPE} now. No instance exists")

    def _body(self, zone: str, uv: tuple[str, str]) -> dict[str, Any]:
        spec = f"gs://{self._storage.bucket}/{self._paths.spec}"  # there is none; `ps` asks there
        body = insert_body(
            self._settings,
            zone,
            run_id=self._paths.run_id,
            attempt=1,
            spec_uri=spec,
            agent=Agent(self._storage.bucket, "", ""),
            deadline=time.time() + lifetime_seconds(self._settings) + _SLACK_SECONDS,
        )
        asked = {
            "questions": [each for each in self._questions if each != "ssh"],
            "bucket": self._storage.bucket,
            "object": f"{self._paths.prefix}/{self._paths.run_id}",
            "uv": {"object": uv[0], "sha256": uv[1]},
            "tracking": self._tracking_uri,
        }
        items = {
            SPEC_ATTRIBUTE: spec,
            NAME_ATTRIBUTE: "doctor's probe",
            MARK: json.dumps(asked),
            "startup-script": startup_script(),
            "enable-guest-attributes": "TRUE",
            "block-project-ssh-keys": "TRUE",
        }
        body["description"] = "mlflow-gce doctor --probe: lives for minutes at most"
        body["metadata"]["items"] = [{"key": k, "value": v} for k, v in items.items()]
        return body

    def _hear(self, zone: str) -> Answers:
        """What the instance says, once it does; or why there is nothing."""

        def look() -> str | None:
            try:
                told = self._compute.guest_attributes(zone, self._name, MARK).get("answers")
            except InstanceNotFound:
                return ""
            except ComputeError:
                told = None  # it does not run yet, or guest attributes are switched off
            return told or _last_answers(self._compute.serial_output(zone, self._name))

        try:
            text = wait_until(look, seconds=_ANSWER_SECONDS, what="the probe's answers")
        except DeadlinePassed:
            return Answers({}, self._why_silent(zone))
        if not text:
            return Answers({}, f"{self._name} vanished before it answered")
        said = json.loads(text)
        if "ssh" in self._questions:
            said["ssh"] = self._reach(zone)
        return Answers(said)

    def _why_silent(self, zone: str) -> str:
        lines = self._compute.serial_output(zone, self._name).strip().splitlines()
        last = f"; the serial port's last line: {lines[-1][:200]}" if lines else ""
        return f"{self._name} did not answer within {_ANSWER_SECONDS:.0f} s{last}"

    def _reach(self, zone: str) -> dict[str, Any]:
        """Whether its SSH port answers here, the way that runs are reached."""
        via, route = (
            self._settings.gce.ssh_via,
            Route.of(emulated=self._settings.endpoints.emulated),
        )
        here = self._compute.get(zone, self._name)
        try:
            retry(
                lambda: route.open(via, self._settings.project, zone, here).close(),
                is_transient=lambda error: isinstance(error, SshUnavailable),
                seconds=_SSH_SECONDS,
            )
        except (SshError, PermissionDenied) as error:
            return {"ok": False, "detail": str(error)}
        return {"ok": True, "detail": f"via {via}: the probe's tcp:{route.port} answered"}

    @contextmanager
    def _deleted(self, zone: str) -> Iterator[None]:
        """Whatever ends the block, the instance is deleted; only a refusal says there is none."""
        with _Signals() as signals:
            try:
                try:
                    yield
                finally:
                    signals.hold()
            except (PermissionDenied, AlreadyExists):
                raise
            except BaseException:
                self._delete(zone)
                raise
            self._delete(zone)

    def _delete(self, zone: str) -> None:
        """Delete it, and say so once a GET said 404; or say what may still bill."""
        try:
            self._compute.delete(zone, self._name)
        except ComputeError as error:
            where = f"{self._name} --zone {zone} --project {self._settings.project}"
            self.left = (
                f"cannot delete instance {self._name!r} in {zone}: {error}. It may still be "
                f"billing, for {_LIFETIME_SECONDS // 60} minutes at most, when Compute Engine "
                f"deletes it. Run:\n  gcloud compute instances delete {where}"
            )
            self._say(self.left)
        else:
            self._say(f"{self._name} deleted: GET says 404")


class _Signals:
    """While the block runs, the first signal that ends programs raises Interrupted; then none."""

    def __init__(self) -> None:
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def hold(self) -> None:
        """From here on nothing is broken off: what was begun must be undone."""
        self._held = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self._held:
            self._held = True
            raise Interrupted(number)


def startup_script() -> str:
    """``probe_script.py`` for an instance that has bash and python3."""
    text = resources.files("gce_backend").joinpath("probe_script.py").read_text(encoding="utf-8")
    return f"#!/bin/bash\npython3 -I - <<'PYTHON'\n{text}\nPYTHON\n"


def _last_answers(serial: str) -> str | None:
    lines = [line for line in serial.splitlines() if f"{MARK} {{" in line]
    return lines[-1].partition(f"{MARK} ")[2] if lines else None
