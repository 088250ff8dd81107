"""What a person sees: each command through a pseudo-terminal, held against a file.

After a change on purpose: UPDATE_GOLDEN=1 pytest tests/commands/test_golden.py, and read the diff.
"""

import difflib
import os
import re
import time
from pathlib import Path

from .conftest import ME
from .terminal import Terminal

GOLDEN = Path(__file__).parent / "golden"
HOUR = 3600.0
WIDE, NARROW = 120, 50

#: golden file -> (columns, more environment, command). RUN and DONE stand for two runs' ids.
CASES = {
    "help": (WIDE, {}, ["--help"]),
    "help-narrow": (NARROW, {}, ["--help"]),
    "ps": (WIDE, {}, ["ps"]),
    "ps-narrow": (NARROW, {}, ["ps"]),
    "ps-no-color": (WIDE, {"NO_COLOR": "1"}, ["ps"]),
    "ps-piped": (None, {}, ["ps"]),
    "ps-all": (WIDE, {"NO_COLOR": "1"}, ["ps", "--all"]),
    "show": (WIDE, {}, ["show", "RUN"]),
    "show-narrow-no-color": (NARROW, {"NO_COLOR": "1"}, ["show", "RUN"]),
    "show-ended-piped": (None, {}, ["show", "DONE"]),
    "logs": (WIDE, {}, ["logs", "DONE"]),
    "pull": (WIDE, {}, ["pull", "DONE", "here"]),
    "pull-piped": (None, {}, ["pull", "DONE", "there"]),
    "cost": (WIDE, {}, ["cost"]),
    "plan": (WIDE, {}, ["plan", "-P", "machine=t4", "-P", "gce.zones=[europe-west1-b]"]),
    "doctor": (WIDE, {}, ["doctor", "-P", "gce.network=global/networks/none"]),
    "doctor-piped": (None, {}, ["doctor"]),
    "sync": (WIDE, {}, ["sync", "--all"]),
    "reap": (WIDE, {}, ["reap", "--dry-run"]),
    "reap-piped": (None, {}, ["reap", "--dry-run"]),
    "unknown-run": (WIDE, {}, ["show", "nobody"]),
    "unknown-command": (WIDE, {}, ["repa"]),
}


def scenario(store):
    """A run that trains, one that is kept, an orphan, and one that has ended."""
    now = time.time() + HOUR
    trains = store.store_run("training-toad", **{"gce.created_at": str(now - HOUR)})
    store.instance(trains, name="training-toad", hours=24)
    store.beats(trains, ago=-HOUR)
    kept = store.store_run("kept-kiwi", **{"gce.created_at": str(now - HOUR)})
    store.instance(kept, name="kept-kiwi", hours=24)
    store.ends(kept, verified=False, missing=("model.pt: never arrived",))
    orphan = store.store_run("orphaned-ox", **{"gce.created_at": str(now - HOUR)})
    store.instance(orphan, name="orphaned-ox", hours=0.5)
    done = store.store_run("done-dove", **{"gce.created_at": str(now - 2 * HOUR)})
    root = store.artifacts(done)
    store.ends(done, files={f"{root}metrics.json": b"{}", f"{root}model.pt": b"w" * 2_500_000})
    store.client.log_metric(done, "gce/cost_usd", 0.12)
    store.client.set_terminated(done, "FINISHED", round((now - HOUR) * 1000))
    store.client.set_tag(done, "gce.end_reason", "succeeded")
    # Within a minute of making all this, ages are the same in whole minutes.
    return {"RUN": trains, "KEPT": kept, "ORPHAN": orphan, "DONE": done}, time.time() + HOUR - 25


def plain(text, store, runs):
    """What differs from one time to the next, in the same width."""
    text = text.rpartition("\x1b[2K")[2]  # what a progress bar had drawn before it went
    for digit, run_id in enumerate(runs.values(), 1):
        text = text.replace(run_id, str(digit) * 32).replace(run_id[:8], str(digit) * 8)
    text = text.replace(store.bucket, "bucket-00000000").replace(str(store.directory), "/home/me")
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-01-01 00:00:00", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "2026-01-01 00:00", text)
    text = re.sub(r"http://127.0.0.1:\d+", "http://127.0.0.1:1", text)
    text = re.sub(rf"\b{ME}\b", "me", text)
    return re.sub(r"ubuntu-2404-noble-amd64-v\d+", "ubuntu-2404-noble-amd64-v20260101", text)


def test_every_command_looks_as_it_did(store):
    runs, now = scenario(store)
    (store.directory / "MLproject").write_text("entry_points: {main: {command: python train.py}}")
    seen = {}
    with Terminal() as terminal:
        for name, (columns, more, words) in CASES.items():
            environ = {**store.environ, "TERM": "xterm-256color", **more}
            text = terminal.run(
                [runs.get(word, word) for word in words],
                environ=environ,
                directory=str(store.directory),
                columns=columns,
                now=now,
            )
            seen[name] = plain(text, store, runs)

    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        for name, text in seen.items():
            (GOLDEN / f"{name}.txt").write_text(text)
    differences = [
        line
        for name, text in seen.items()
        for line in difflib.unified_diff(
            (GOLDEN / f"{name}.txt").read_text().splitlines(), text.splitlines(), name, lineterm=""
        )
    ]
    assert differences == []
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(CASES)
    assert all("\x1b[" not in seen[name] for name in CASES if "piped" in name)
    assert all("Traceback" not in text for text in seen.values())
