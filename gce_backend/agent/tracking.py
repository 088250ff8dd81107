"""Tracking on the instance, put together: what is known, its journal, and the relay over both."""

from __future__ import annotations

import secrets
import time

from .artifact_api import ArtifactApi
from .history import earlier_records
from .journal import Journal
from .locations import Locations
from .relay import Relay
from .spec import Spec
from .spool import Spool
from .state import State
from .stop import PREEMPTED, Stop
from .storage import Storage
from .system_metrics import Sampler, SystemMetrics
from .tracking_api import TrackingApi
from .tracking_state import TrackingState


class Tracking:
    """Known are: the run as the client saw it, what earlier attempts wrote, what this one wrote."""

    def __init__(
        self, spec: Spec, state: State, storage: Storage, spool: Spool, stop: Stop | None = None
    ) -> None:
        self._state, self._run_id, self._stop = state, spec.run_id, stop or Stop()
        known = TrackingState(spec.experiment, spec.run)
        last_seq = 0
        for record in earlier_records(storage, spec, state.root / "journal.before.jsonl"):
            known.apply(record)
            last_seq = int(record["seq"])
        state.reserve.set_aside()
        self._journal = Journal(state.journal, last_seq, state.reserve.release)
        self._locations = Locations(spec.experiment_location)
        self._api = TrackingApi(known, self._journal, self._locations)
        if last_seq == state.memory.trainer_seq:
            self._api.repeats.remember(known.main)
        for record in self._journal.records():
            known.apply(record)
            if record["seq"] == state.memory.trainer_seq:
                self._api.repeats.remember(known.main)
        self._artifacts = ArtifactApi(spool, storage, self._locations, self._api.lookup)

    @property
    def writes(self) -> int:
        """How often the trainer has written something."""
        return self._api.writes

    @property
    def last_seq(self) -> int:
        return self._journal.last_seq

    def serve(self) -> Relay:
        """Start the relay: at the address, and with the token, that a running trainer knows."""
        memory = self._state.memory
        memory.token = memory.token or secrets.token_urlsafe(32)
        relay = Relay(self._api, self._artifacts, self._locations, memory.token, memory.port)
        memory.port = relay.port
        self._state.save()
        relay.start()
        return relay

    def new_trainer(self) -> None:
        """A trainer is about to start. What is known by now was logged by one before it: by an
        earlier attempt's, or on this disk before a reboot."""
        self._state.memory.trainer_seq = self._journal.last_seq
        self._state.save()
        self._api.repeats.remember(self._api.state.main)

    def system_metrics(self, interval: float) -> SystemMetrics:
        """What logs the machine's state on the run; a trainer's own of that kind is left out."""
        sampler = Sampler()
        self._api.repeats.own = frozenset(sampler.sample(gpus=False))
        known = self._api.state.main.metrics
        last = [known[key].latest(key)["step"] for key in self._api.repeats.own if key in known]
        return SystemMetrics(
            sampler,
            self._log_system_metrics,
            interval,
            max(last, default=-1) + 1,
            hurries=lambda: self._stop.reason == PREEMPTED,
        )

    def set_tag(self, key: str, value: str) -> None:
        """A tag of the agent's on the run. OSError on a full disk."""
        self._api.record("runs/set-tag", {"run_id": self._run_id, "key": key, "value": value})

    def delete_tag(self, key: str) -> None:
        self._api.record("runs/delete-tag", {"run_id": self._run_id, "key": key})

    def close(self) -> None:
        """After the relay has stopped: everything acknowledged is on the disk."""
        self._journal.close()

    def _log_system_metrics(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [
            {"key": key, "value": value, "timestamp": now, "step": step}
            for key, value in values.items()
        ]
        self._api.repeats.own |= frozenset(values)
        self._api.record("runs/log-batch", {"run_id": self._run_id, "metrics": points})
