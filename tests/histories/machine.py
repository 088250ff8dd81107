"""What an instance's agent does, as far as bucket and API can see it; a few calls at a step.

It keeps the agent's contract: everything else is in the bucket before ``status.json`` is, the
manifest comes from what was produced and not from what arrived, and the instance is deleted only
when its results are proven. It works as long as its instance runs, and its disk outlives a stop.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, Protocol

from gce_backend.agent.paths import CANCEL_ATTRIBUTE, DEADLINE_LABEL, SPEC_ATTRIBUTE, RunPaths
from gce_backend.storage import Storage, parse_uri

STEPS = 3  # of the training: one metric, one line of the log and one artifact each
_BEAT_SECONDS = 5.0


class Cloud(Protocol):
    """What a machine asks the world for."""

    def delete_instance(self, zone: str, name: str) -> None: ...


class Machine:
    """One instance from the inside.

    Attributes:
        hangs: it does nothing any more, until it is booted again.
        loses: an artifact that never gets to the bucket.
        fails: the trainer exits with code 3.
        is_taken: its instance is preempted.
        status: its status.json, once it is in the bucket.
        deadline: unix seconds after which anybody may delete it.
        acknowledged: what its manifest names: object and content.
    """

    def __init__(self, cloud: Cloud, storage: Storage, resource: dict[str, Any]) -> None:
        self._cloud = cloud
        self.name = str(resource["name"])
        self.zone = str(resource["zone"]).rpartition("/")[2]
        bucket, spec = parse_uri(_attribute(resource, SPEC_ATTRIBUTE))
        self._storage = storage.in_bucket(bucket)
        root, _, run_id = spec.removesuffix("/spec.json").rpartition("/runs/")
        self.paths = RunPaths(root, run_id)
        self.hangs = self.loses = self.fails = self.is_taken = False
        self.status: dict[str, Any] | None = None
        self.acknowledged: dict[str, bytes] = {}
        self.deadline = float(resource["labels"][DEADLINE_LABEL])
        if seconds := resource["scheduling"].get("maxRunDuration", {}).get("seconds"):
            created = datetime.fromisoformat(resource["creationTimestamp"]).timestamp()
            self.deadline = min(self.deadline, created + float(seconds))
        self._spec: dict[str, Any] = {}
        self._attempt = 0
        self._phases: list[dict[str, Any]] = []
        self._beat_at = 0.0
        self._ending: tuple[str, int, float] | None = None
        self._produced: dict[str, bytes] = {}
        self._steps = 0  # of the run, its earlier attempts included

    def step(self, now: float, resource: dict[str, Any], *, preempted: bool = False) -> None:
        """Go on a little.

        Raises:
            StorageError: the bucket refused; the next step tries the same again.
        """
        if self.hangs:
            return
        if self.status is not None:
            if self.status["verified"] and self.status["end_reason"] != "preempted":
                self._cloud.delete_instance(self.zone, self.name)
            return
        if not self._spec:
            self._fetch(now)
        self._beat(now)
        if self._ending is None:
            self._ending = self._reason_to_end(now, resource, preempted)
        if self._ending is None:
            self._train(now)
        if self._ending is not None:
            self._enter("collecting", now)
            self._collect(now)

    @property
    def is_at_work(self) -> bool:
        """Whether its training has begun: from here on there is something to lose."""
        return any(entry["phase"] == "running" for entry in self._phases)

    # ------------------------------------------------------------------ the agent's phases

    def _fetch(self, now: float) -> None:
        spec = self._storage.read_json(self.paths.spec)
        self._attempt = int(spec["attempt"])
        self._steps = len(list(self._storage.list(self.paths.journal_dir)))
        self._spec = spec
        self._enter("fetching", now)
        self._enter("environment", now)

    def _reason_to_end(
        self, now: float, resource: dict[str, Any], preempted: bool
    ) -> tuple[str, int, float] | None:
        if preempted:
            return "preempted", 143, now
        is_asked = _attribute(resource, CANCEL_ATTRIBUTE) == "1"
        if is_asked or self._storage.exists(self.paths.cancel):
            return "cancelled", 143, now
        if now > self._spec["deadline"] - self._spec["grace_seconds"]:
            return "deadline", 143, now
        return None

    def _train(self, now: float) -> None:
        if self._enter("running", now):
            return
        if self._steps >= STEPS:
            self._ending = ("succeeded", 0, now)
        elif self.fails and self._steps:
            self._ending = ("exited_nonzero", 3, now)
        else:
            self._one_step(self._steps + 1)

    def _one_step(self, step: int) -> None:
        metric = {"key": "loss", "value": 1 / step, "timestamp": 1_764_000_000_000 + step}
        body = {"run_id": self.paths.run_id, **metric, "step": step}
        record = {"seq": step, "at": metric["timestamp"], "path": "runs/log-metric"}
        line = json.dumps({**record, "method": "POST", "body": body}) + "\n"
        artifact = self._spec["tracking"]["run"]["info"]["artifact_uri"]
        _, root = parse_uri(artifact)
        self._produced.setdefault(f"{root}/step-{step}.txt", f"step {step}\n".encode())
        for name, data in (
            (self.paths.log(step), f"step {step}\n".encode()),
            (self.paths.journal(step), line.encode()),
        ):
            self._produced[name] = data
            self._storage.put(name, data)
        self._steps = step

    def _collect(self, now: float) -> None:
        assert self._ending is not None
        reason, code, ended_at = self._ending
        lost = next((n for n in self._produced if "step-" in n), "") if self.loses else ""
        missing = [f"{self._storage.uri(lost)}: not in the bucket"] if lost else []
        objects = []
        for name, data in self._produced.items():
            if name != lost:
                info = self._storage.put(name, data)
                objects.append(self._entry(name, data, info))
        manifest = {"version": 1, "run_id": self.paths.run_id, "attempt": self._attempt}
        status = {
            "version": 1,
            "run_id": self.paths.run_id,
            "attempt": self._attempt,
            "instance": self.name,
            "zone": self.zone,
            "image": "",
            "may_delete": True,
            "end_reason": reason,
            "exit_code": code,
            "message": "",
            "started_at": self._phases[0]["at"],
            "ended_at": ended_at,
            "written_at": now,
            "phases": self._phases,
            "log_segments": self._steps,
            "log_bytes": 0,
            "journal_segments": self._steps,
            "journal_records": self._steps,
            "verified": not missing,
            "missing": missing,
        }
        self._storage.put_json(self.paths.manifest, {**manifest, "objects": objects})
        self._storage.put_json(self.paths.status, status)
        self.acknowledged = {name: data for name, data in self._produced.items() if name != lost}
        self.status = status

    # ------------------------------------------------------------------ what it tells

    def _enter(self, phase: str, now: float) -> bool:
        """Whether this is the first time."""
        if any(entry["phase"] == phase for entry in self._phases):
            return False
        self._phases.append({"phase": phase, "at": now})
        self._beat_at = 0.0
        return True

    def _beat(self, now: float) -> None:
        if now - self._beat_at >= _BEAT_SECONDS:
            heartbeat = {"at": now, "attempt": self._attempt, "instance": self.name}
            self._storage.put_json(self.paths.heartbeat, {**heartbeat, "phases": self._phases})
            self._beat_at = now

    def _entry(self, name: str, data: bytes, info: Any) -> dict[str, Any]:
        return {
            "bucket": self._storage.bucket,
            "name": name,
            "size": len(data),
            "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "crc32c": info.crc32c,
            "generation": str(info.generation),
        }


def _attribute(resource: dict[str, Any], key: str) -> str:
    items = resource.get("metadata", {}).get("items", [])
    return next((str(item.get("value", "")) for item in items if item["key"] == key), "")
