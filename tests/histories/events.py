"""What may happen in a history, as hypothesis draws it."""

from __future__ import annotations

from hypothesis import strategies as st

from gce_backend.emulator import Fault

from .world import Event

BUCKET = "histories"

_TRANSIENT = ["unavailable", "too_many_requests", "reply_lost_before", "reply_lost_after"]
_OPERATION = ["operation_fails", "operation_slow", "operation_stuck"]
_FAULTS = st.one_of(
    st.builds(
        Fault,
        st.sampled_from([*_TRANSIENT, "internal_error", "forbidden"]),
        st.sampled_from(
            ["instances.insert", "instances.delete", "instances.get", "zoneOperations.*"]
        ),
        times=st.integers(1, 4),
    ),
    st.builds(
        Fault,
        st.sampled_from(_OPERATION),
        st.sampled_from(["instances.insert", "instances.delete", "instances.start"]),
        times=st.integers(1, 2),
        seconds=st.sampled_from([30.0, 400.0]),
    ),
    st.builds(Fault, st.sampled_from(["no_capacity", "quota_region"]), times=st.integers(1, 2)),
    st.builds(
        Fault,
        st.sampled_from([*_TRANSIENT, "forbidden"]),
        st.sampled_from(["storage.objects.insert", "storage.objects.get", "storage.objects.list"]),
        st.sampled_from([f"{BUCKET}/*", f"{BUCKET}/*status.json", f"{BUCKET}/*manifest.json"]),
        times=st.integers(1, 12),
    ),
)
_HAPPENINGS = [
    *["preempt", "preempt with notice", "host error", "user stop", "user delete"],
    *["hang", "lose", "fail"],
]
_AFTER = st.integers(0, 4)  # a machine that nothing happens to is done after eight steps
_KILLS = st.builds(
    Event,
    st.sampled_from(["kill", "kill before call", "kill after call"]),
    _AFTER,
    number=st.integers(0, 30),
)
EVENTS = st.one_of(
    st.builds(Event, st.just("fault"), _AFTER, _FAULTS),
    st.builds(Event, st.sampled_from(_HAPPENINGS), _AFTER),
    st.builds(Event, st.sampled_from(_HAPPENINGS), _AFTER),
    _KILLS,
)
SCRIPTS = st.lists(EVENTS, min_size=1, max_size=5)
