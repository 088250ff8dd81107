"""Which of several clients asks for an attempt's instance; the others follow what it asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from gce_backend.claims import Claim
from gce_backend.compute import Compute
from gce_backend.errors import FollowingLost
from gce_backend.instance import instance_name
from gce_backend.instance_watch import InstanceWatch, has_given_up
from gce_backend.interrupts import Interrupts
from gce_backend.lifecycle import EndReason
from gce_backend.presence import this_client
from gce_backend.storage import Storage
from gce_backend.submission import Submission

_TICK_SECONDS = 1.0
_MOST_SECONDS = 1800.0  # for another client, which has less than that for its insert


def claim_or_follow(
    storage: Storage,
    compute: Compute,
    run: Submission,
    number: int,
    interrupts: Interrupts,
    cancel: Callable[[Submission], None],
) -> Claim | Submission:
    """The claim of attempt ``number``, ours; or what another client has asked for.

    A claim is taken over only from a client that will not ask any more and whose instance never
    came to be: both may be true of one that lives, between two zones.

    Args:
        run: any attempt of the run.
        cancel: called when a person asks for the end meanwhile, so that its holder hears of it.

    Raises:
        StorageError: the bucket does not answer.
        FollowingLost: nothing was heard of what another client has asked for.
    """
    claim, until = Claim(storage, run, number), time.monotonic() + _MOST_SECONDS
    other: Submission | None = None
    while time.monotonic() < until:
        found = claim.look()
        if found is None:
            if claim.take(_announced(run, number)):
                return claim
            continue  # another one was faster
        if found != other:
            other, watch = found, InstanceWatch(found, compute)
        loss = watch.look()
        if watch.is_known or (loss and loss.reason is not EndReason.SUBMIT_FAILED):
            return found
        if loss and has_given_up(found) and claim.take(_announced(run, number)):
            return claim
        if interrupts.wants_cancel:
            cancel(run)
        interrupts.sleep(_TICK_SECONDS)
    raise FollowingLost(
        f"run {run.run_id}: another client asks for the instance of attempt {number}, and Compute "
        f"Engine has not told for {_MOST_SECONDS / 60:.0f} min what came of it; it may bill. To "
        f"see, run:\n  mlflow-gce ps\n  mlflow-gce attach {run.run_id}"
    )


def _announced(run: Submission, number: int) -> Submission:
    """What a claim says before its holder knows a zone."""
    return replace(
        run,
        attempt=number,
        instance=instance_name(run.run_id, number),
        created_at=time.time(),
        client=this_client(),
    )
