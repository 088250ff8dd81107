"""The quick look at the start of a command: the caller's own finished instances, deleted.

It runs in the background and delays nothing: a command that ends before it takes it along. It
deletes only what is verified, so there is nothing to ask anybody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from gce_backend.errors import GceBackendError
from gce_backend.instance import owner_label
from gce_backend.reaper import Reaper


def glance(
    project: str,
    *,
    endpoint: str | None,
    say: Callable[[str], None],
    except_run: str = "",
) -> threading.Thread:
    """Start looking; returns at once.

    Args:
        endpoint: as in ``config.Endpoints.compute``.
        say: gets one line for each instance that is gone (a GET said 404).
        except_run: the run that the command itself takes care of.
    """

    def look() -> None:
        try:
            reaper = Reaper(project, endpoint=endpoint)
            found = reaper.run(
                owner=owner_label(),
                proven_only=True,
                leave=lambda instance: instance.run_id == except_run,
            )
            for outcome in found:
                if outcome.deed == "deleted":
                    here = outcome.instance
                    say(
                        f"deleted instance {here.name} in {here.zone}, left by a run of yours "
                        "whose results are verified: GET says 404"
                    )
        except GceBackendError:
            return  # a courtesy; `mlflow-gce reap` is what reports

    thread = threading.Thread(target=look, daemon=True, name="glance")
    thread.start()
    return thread
