"""What the last look at a store found, kept for the next command: a look takes longer than most.

``$XDG_STATE_HOME/mlflow-gce/unsynced.json``: store -> the notice, and when it was true. A courtesy:
a file that cannot be read or written is as good as none.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

_KEPT_SECONDS = 86400.0


def recall(store: str | None) -> tuple[str, float]:
    """The notice ("" for nothing to tell), and how many seconds ago it was true (inf: never)."""
    entry = _read().get(_key(store), {})
    try:
        age = time.time() - float(entry["at"])
        return (str(entry["notice"]), age) if 0 <= age < _KEPT_SECONDS else ("", float("inf"))
    except (LookupError, TypeError, ValueError):
        return "", float("inf")


def remember(store: str | None, notice: str) -> None:
    now = time.time()
    kept = {k: v for k, v in _read().items() if now - v.get("at", 0) < _KEPT_SECONDS}
    kept[_key(store)] = {"notice": notice, "at": now}
    part = _file().with_name(f"unsynced.{os.getpid()}")
    with contextlib.suppress(OSError):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(kept), encoding="utf-8")
        part.replace(_file())


def _key(store: str | None) -> str:
    """As it was named: to resolve it, MLflow would have to be imported."""
    uri = store or os.environ.get("MLFLOW_TRACKING_URI") or ""
    return uri if "://" in uri and not uri.startswith("sqlite:///") else f"{uri} in {Path.cwd()}"


def _read() -> dict[str, Any]:
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "mlflow-gce" / "unsynced.json"
