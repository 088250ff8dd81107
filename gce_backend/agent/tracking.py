"""Tracking on the instance, put together: what is known, its journal, and the relay over both."""

from __future__ import annotations

import secrets

from .artifact_api import ArtifactApi
from .history import earlier_records
from .journal import Journal
from .locations import Locations
from .relay import Relay
from .spec import Spec
from .spool import Spool
from .state import State
from .storage import Storage
from .tracking_api import TrackingApi
from .tracking_state import TrackingState


class Tracking:
    """Known are: the run as the client saw it, what earlier attempts wrote, what this one wrote."""

    def __init__(self, spec: Spec, state: State, storage: Storage, spool: Spool) -> None:
        self._state = state
        known = TrackingState(spec.experiment, spec.run)
        last_seq = 0
        for record in earlier_records(storage, spec, state.root / "journal.before.jsonl"):
            known.apply(record)
            last_seq = int(record["seq"])
        self._journal = Journal(state.journal, last_seq)
        for record in self._journal.records():
            known.apply(record)
        self._locations = Locations(spec.experiment_location)
        self._api = TrackingApi(known, self._journal, self._locations)
        self._artifacts = ArtifactApi(spool, storage, self._locations, self._api.lookup)

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

    def close(self) -> None:
        """After the relay has stopped: everything acknowledged is on the disk."""
        self._journal.close()
