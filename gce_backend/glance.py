"""The quick look at the start of a command: the caller's own finished instances, deleted; and
runs told of that the bucket has more of than the store.

It is a process of its own, so it delays nothing and outlives a command that ends at once; what it
deletes is verified, so there is nothing to ask anybody. (A thread would not do: two threads that
import the cloud libraries at the same time run into each other's half-made modules.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

#: ``false`` in the environment switches the quick look off.
SWITCH = "MLFLOW_GCE_GLANCE"
_SECONDS = 120  # it ends by itself after this, whatever it waits for
_STORE_SECONDS = 300.0  # so long what was found in the store counts: opening one is work


def glance(
    project: str | None,
    *,
    say: Callable[[str], None],
    except_run: str = "",
    store: str | None = None,
) -> threading.Thread:
    """Start looking; returns at once.

    Args:
        project: None: the one that ``conf/`` here or the credentials name.
        say: gets one line for each instance that is gone (a GET said 404), while we are here.
        except_run: the run that the command itself takes care of: id, its beginning, or name.
        store: look for unsynced runs as well, in this MLflow store; "" is MLflow's own here.

    Returns:
        Who hears what the look finds; it ends when the look does.
    """
    thread = threading.Thread(target=lambda: None, name="glance")
    if os.environ.get(SWITCH, "").lower() not in ("false", "0"):
        words = [project or "", except_run, *([] if store is None else [store])]
        with contextlib.suppress(OSError):  # a courtesy; `mlflow-gce reap` is what reports
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gce_backend.glance", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            thread = threading.Thread(
                target=_pass_on, args=(process, say), daemon=True, name="glance"
            )
    thread.start()
    return thread


def _pass_on(process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        say(line.rstrip())
    process.wait()


def look(project: str, except_run: str) -> None:
    """Delete the caller's own instances whose results are verified; a line for each."""
    from gce_backend.instance import owner_label
    from gce_backend.place import find_place
    from gce_backend.reaper import Reaper

    place = find_place(project or None)
    reaper = Reaper(place.project, endpoint=place.endpoints.compute)
    found = reaper.run(
        owner=owner_label(),
        proven_only=True,
        leave=lambda here: (
            bool(except_run) and (here.run_id.startswith(except_run) or here.run_name == except_run)
        ),
    )
    for outcome in found:
        if outcome.deed == "deleted":
            here = outcome.instance
            _tell(
                f"deleted instance {here.name} in {here.zone}, left by a run of yours whose "
                "results are verified: GET says 404"
            )


def look_into_store(store: str, except_run: str) -> None:
    """Tell of unsynced runs, and keep it for the next command; not again within minutes."""
    from gce_backend.backlog import notice, unsynced_runs
    from gce_backend.last_look import recall, remember
    from gce_backend.tracking import Tracking, resolve_uri

    before, age = recall(store)
    uri = resolve_uri(store or None)
    if age < _STORE_SECONDS or not _is_there(uri):
        return
    found = unsynced_runs(Tracking(uri))
    remember(store, notice(found))
    text = notice([each for each in found if not each.run_id.startswith(except_run or "-")])
    if text and text != before:
        _tell(text)


def _is_there(uri: str) -> bool:
    """Opening a store that is a file makes it; a look must not."""
    path = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else ""
    return not path or os.path.exists(path)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever started us is gone
        os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    signal.alarm(_SECONDS)
    os.nice(10)
    _project, _run, *_store = sys.argv[1:]
    try:
        look(_project, _run)
    finally:
        for _each in _store:
            look_into_store(_each, _run)
