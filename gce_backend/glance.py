"""The quick look at the start of a command: the caller's own finished instances, deleted.

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


def glance(project: str, *, say: Callable[[str], None], except_run: str = "") -> threading.Thread:
    """Start looking; returns at once.

    Args:
        say: gets one line for each instance that is gone (a GET said 404), while we are here.
        except_run: the run that the command itself takes care of.

    Returns:
        Who hears what the look finds; it ends when the look does.
    """
    thread = threading.Thread(target=lambda: None, name="glance")
    if os.environ.get(SWITCH, "").lower() not in ("false", "0"):
        with contextlib.suppress(OSError):  # a courtesy; `mlflow-gce reap` is what reports
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gce_backend.glance", project, except_run],
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
    from gce_backend.config import read_endpoints
    from gce_backend.instance import owner_label
    from gce_backend.reaper import Reaper

    reaper = Reaper(project, endpoint=read_endpoints().compute)
    found = reaper.run(
        owner=owner_label(),
        proven_only=True,
        leave=lambda instance: instance.run_id == except_run,
    )
    for outcome in found:
        if outcome.deed == "deleted":
            here = outcome.instance
            line = (
                f"deleted instance {here.name} in {here.zone}, left by a run of yours whose "
                "results are verified: GET says 404\n"
            )
            with contextlib.suppress(OSError):  # whoever started us is gone
                os.write(1, line.encode())


if __name__ == "__main__":
    signal.alarm(_SECONDS)
    look(*sys.argv[1:3])
