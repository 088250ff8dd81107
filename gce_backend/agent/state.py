"""What the agent remembers on the instance's disk, so that a second start resumes.

Everything lies in ``$STATE_DIRECTORY/mlflow-gce`` (systemd's name; default ``/var/lib``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .disk import Reserve
from .family import boot_id
from .files import read_json, write_atomically

ON_DISK = "on disk"


@dataclass
class Ending:
    """How the trainer ended, before anything of it was proven to be in the bucket."""

    end_reason: str
    exit_code: int | None
    message: str
    ended_at: float


@dataclass
class Memory:
    """``state.json``. ``port`` and ``token`` are the relay's: a restarted one takes them again."""

    run_id: str = ""
    attempt: int = 0
    port: int = 0
    token: str = ""
    started_at: float = 0.0
    phases: list[dict[str, str | float]] = field(default_factory=list)
    bin_directory: str = ""  # of the trainer's environment, once it is made; "" is the image's own
    environment_ready: bool = False
    # The boot in which project and environment were put on the disk, ON_DISK once they are there.
    prepared_in: str = ""
    trainer_seq: int = 0  # the journal's last record when the trainer was started, the last time
    restored: bool = False  # an earlier attempt's files are back in the working directory
    may_delete: bool | None = None  # this instance, itself; None until it was asked
    ending: Ending | None = None


class State:
    """The directory, and ``state.json`` in it. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._file = root / "state.json"
        self._lock = threading.Lock()
        self._saved = b""
        self.reserve = Reserve(root / "reserve")
        root.mkdir(parents=True, exist_ok=True)
        self.memory = self._load()

    @classmethod
    def at_default(cls) -> State:
        return cls(Path(os.environ.get("STATE_DIRECTORY") or "/var/lib") / "mlflow-gce")

    # Names in the directory.
    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def job(self) -> Path:
        return self.root / "job.pyz"

    @property
    def environment(self) -> Path:
        return self.root / "environment"

    @property
    def log(self) -> Path:
        return self.root / "run.log"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def status(self) -> Path:
        """A copy of ``status.json``, once that is in the bucket."""
        return self.root / "status.json"

    @property
    def spec(self) -> Path:
        """A copy of ``spec.json``: a restarted agent does not depend on the bucket."""
        return self.root / "spec.json"

    @property
    def trainer(self) -> Path:
        return self.root / "trainer"

    def belong_to(self, run_id: str, attempt: int) -> None:
        """Start this attempt's memory, or keep it; another attempt's leftovers are removed."""
        memory = self.memory
        if (memory.run_id, memory.attempt) == (run_id, attempt):
            return
        if memory.run_id:
            for leftover in self.root.iterdir():
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                elif leftover not in (self.spec, self.root / "agent.pyz"):
                    leftover.unlink()
        self.memory = Memory(run_id=run_id, attempt=attempt, started_at=time.time())
        self.save()

    def begin_preparing(self) -> None:
        """Before project and environment are put on the disk: what an earlier boot put there is
        begun anew, unless the disk had all of it when that boot ended. A host that fails leaves
        files that are there and empty."""
        memory = self.memory
        if memory.prepared_in == ON_DISK:
            return
        if memory.prepared_in not in ("", boot_id()):
            for directory in (self.work, self.environment):
                shutil.rmtree(directory, ignore_errors=True)
            self.job.unlink(missing_ok=True)
            memory.environment_ready = memory.restored = False
        memory.prepared_in = boot_id()
        self.save()

    def end_preparing(self) -> None:
        """Have the disk keep it, which takes seconds after a large environment; nobody waits."""
        if self.memory.prepared_in != ON_DISK:
            threading.Thread(target=self._settle, daemon=True, name="settle").start()

    def _settle(self) -> None:
        os.sync()
        self.memory.prepared_in = ON_DISK
        with contextlib.suppress(OSError):  # a full disk; the next save has it too
            self.save()

    def save(self) -> None:
        """OSError on a disk that is full even without the reserve."""
        with self._lock:
            text = json.dumps(asdict(self.memory)).encode()
            if text == self._saved:
                return
            try:
                write_atomically(self._file, text, mode=0o600)
            except OSError:
                if not self.reserve.release():
                    raise
                write_atomically(self._file, text, mode=0o600)
            self._saved = text

    def enter(self, phase: str) -> bool:
        """Note that ``phase`` begins; False when it had begun before a restart."""
        if any(entry["phase"] == phase for entry in self.memory.phases):
            return False
        self.memory.phases.append({"phase": phase, "at": time.time()})
        self.save()
        return True

    def _load(self) -> Memory:
        raw = read_json(self._file)
        if raw is None:
            return Memory()
        self._saved = json.dumps(raw).encode()
        ending = raw.pop("ending")
        return Memory(**raw, ending=Ending(**ending) if ending else None)
