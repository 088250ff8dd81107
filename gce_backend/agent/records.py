"""A journal's records on their way into a tracking store: in order, merged where order is free.

The client applies them through MLflow's own store (``replay.py`` there), the agent over REST
(``forward_replay.py``). What both must do alike, so that either may take over from the other
anywhere, is here; standard library only, and nothing of either.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .entities import Json
from .entries import ENTRIES, UNFIT, normal

APPLIED_TAG = "gce.journal.applied"  # on the run: number of the last segment that the store has

# On whatever a journal created: the id that the relay gave it, and the run whose journal it was.
ID_TAG = "gce.provisional_id"
OF_TAG = "gce.provisional_of"
# A provisional model becomes READY when its files are in place; until then its status waits here.
FINAL_STATUS_TAG = "gce.final_status"

# The SQL store's limits for one log-batch.
MAX_ITEMS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100

_ID = re.compile(r"(?<![0-9a-f])(?:m-)?[0-9a-f]{32}(?![0-9a-f])")


class Refused(Exception):
    """The store is well and does not accept this write."""


@dataclass(frozen=True)
class Refusal:
    """Something the store does not accept: which record, what in it, and the store's reason.

    ``seq`` is 0 for a record that does not tell its number.
    """

    seq: int
    what: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Item:
    """One entry of a log-batch.

    Args:
        kind: "metrics", "params" or "tags", as log-batch calls them.
        value: a parameter's, which may be logged once only; of no matter elsewhere.
        entity: it in the applier's own form.
    """

    kind: str
    key: str
    value: Any
    entity: Any
    seq: int


@dataclass
class Batch:
    """What goes to one run in one call."""

    items: list[Item] = field(default_factory=list)
    # Where in items a key stands.
    params: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)

    def add(self, item: Item) -> bool:
        """False if the batch must be sent first."""
        if item.kind == "tags" and item.key in self.tags:
            self.items[self.tags[item.key]] = item  # the last one wins, as in the store
            return True
        if item.kind == "params" and item.key in self.params:
            return bool(self.items[self.params[item.key]].value == item.value)
        if (
            len(self.items) >= MAX_ITEMS
            or (item.kind == "params" and len(self.params) >= MAX_PARAMS)
            or (item.kind == "tags" and len(self.tags) >= MAX_TAGS)
        ):
            return False
        if item.kind != "metrics":
            (self.params if item.kind == "params" else self.tags)[item.key] = len(self.items)
        self.items.append(item)
        return True


class Records(ABC):
    """Applies records one after another; ``flush`` when they must be in the store.

    Args:
        translate: JSON or text with every provisional id replaced by the store's own.
        refuse: told of everything that the store does not accept; it never stops the rest.
    """

    #: By method and path: a call with the applier, the body and the whole record.
    calls: ClassVar[Mapping[tuple[str, str], Callable[[Any, Json, Json], None]]]
    #: By method and what comes after logged-models/<id>/: with the id, the body and the rest.
    model_calls: ClassVar[Mapping[tuple[str, str], Callable[[Any, str, Json, str], None]]]

    def __init__(self, translate: Callable[[Any], Any], refuse: Callable[[Refusal], None]) -> None:
        self._translate, self._refuse = translate, refuse
        self._batches: dict[str, Batch] = {}

    def take(self, record: Json) -> None:
        """Apply one record. Where the store is away it, and what was collected, may be applied
        again from the start of their segments."""
        seq = record["seq"] if isinstance(record.get("seq"), int) else 0
        if record.get("path") not in ENTRIES:  # its order matters
            self.flush()
        try:
            method, path = str(record["method"]), self._translate(str(record["path"]))
            body = self._translate(record.get("body") or {})
            if entries := ENTRIES.get(path):
                run_id = str(body.get("run_id") or body["run_uuid"])
                for kind, entry in entries(body):
                    self._collect(run_id, kind, entry, seq)
                return
            self._call(method, path, body, record)
        except Refused as refused:
            self._refuse(Refusal(seq, f"{record.get('method')} {record.get('path')}", str(refused)))
        except self.malformed() as error:
            what = f"{record.get('path') or record.get('unreadable') or 'a record'}"
            self._refuse(Refusal(seq, what[:100], f"not a journal record: {error!r}"[:300]))

    def flush(self) -> None:
        """Send what was collected."""
        batches, self._batches = self._batches, {}
        for run_id, batch in batches.items():
            self._send(run_id, batch.items)

    def malformed(self) -> tuple[type[Exception], ...]:
        """What a record that is none raises."""
        return UNFIT

    @abstractmethod
    def entity(self, kind: str, entry: Json) -> Any:
        """An entry in the applier's own form. Raises what ``malformed`` says."""

    @abstractmethod
    def log_batch(self, run_id: str, items: list[Item]) -> None:
        """One call. Raises Refused."""

    @abstractmethod
    def is_active(self, run_id: str) -> bool:
        """Whether the run takes data: it is there, and not deleted."""

    def successor(self, run_id: str) -> str:
        """The run that took the place of one which takes no data; itself when none did."""
        return run_id

    def _collect(self, run_id: str, kind: str, entry: Any, seq: int) -> None:
        try:
            fit = normal(kind, entry)
            item = Item(kind, str(fit["key"]), fit["value"], self.entity(kind, fit), seq)
        except self.malformed() as error:
            key = entry.get("key") if isinstance(entry, dict) else entry
            what = f"{kind[:-1]} {key!r} of run {run_id}"
            self._refuse(Refusal(seq, what[:300], f"{error}"[:300]))
            return
        batch = self._batches.setdefault(run_id, Batch())
        if not batch.add(item):
            self._send(run_id, batch.items)
            self._batches[run_id] = Batch()
            self._batches[run_id].add(item)

    def _send(self, run_id: str, items: list[Item]) -> None:
        """One call; where it is refused, smaller ones, down to the entry that is at fault."""
        try:
            self.log_batch(run_id, items)
        except Refused as refused:
            is_active = self.is_active(run_id)
            if not is_active and (other := self.successor(run_id)) != run_id:
                self._send(other, items)
            elif len(items) == 1 or not is_active:
                first = items[0]
                what = f"{first.kind[:-1]} {first.key!r} of run {run_id}"
                self._refuse(Refusal(first.seq, what, str(refused), len(items)))
            else:
                for part in halves(items):
                    self._send(run_id, part)

    def _call(self, method: str, path: str, body: Json, record: Json) -> None:
        if call := self.calls.get((method, path)):
            call(self, body, record)
            return
        parts = path.split("/")
        if parts[0] == "logged-models" and len(parts) > 1:
            what = parts[2] if len(parts) > 2 else ""
            if change := self.model_calls.get((method, what)):
                change(self, parts[1], body, "/".join(parts[3:]))
                return
        raise Refused("this version of mlflow-gce does not know this write")


def halves(items: list[Item]) -> list[list[Item]]:
    """By kind first, since one bad parameter says nothing about metrics; then in halves."""
    kinds = [[item for item in items if item.kind == k] for k in ("params", "metrics", "tags")]
    kinds = [part for part in kinds if part]
    if len(kinds) > 1:
        return kinds
    middle = len(items) // 2
    return [items[:middle], items[middle:]]


def translated(value: Any, real: Callable[[str], str]) -> Any:
    """JSON or text with every id in its strings as ``real`` has it."""
    if isinstance(value, str):
        return _ID.sub(lambda match: real(match[0]), value) if len(value) >= 32 else value
    if isinstance(value, list):
        return [translated(item, real) for item in value]
    if isinstance(value, dict):
        return {key: translated(item, real) for key, item in value.items()}
    return value
