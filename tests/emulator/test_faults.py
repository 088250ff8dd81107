"""Faults as data: each kind does what it says, so often and no more."""

from __future__ import annotations

import pytest
import requests

from gce_backend.emulator import Emulator, Fault, FaultKind
from gce_backend.emulator.faults import answer_error

from .conftest import Api

ANSWERS = {kind for kind in FaultKind if kind is not FaultKind.INSUFFICIENT_CAPACITY} & {
    kind for kind in FaultKind if answer_error(Fault(kind)) is not None
}


@pytest.mark.parametrize("kind", sorted(ANSWERS))
def test_an_answer_is_spoiled_as_often_as_asked(
    emulator: Emulator, api: Api, kind: FaultKind
) -> None:
    emulator.inject(Fault(kind, "instances.list", times=2))
    expected = answer_error(Fault(kind))
    codes = [requests.get(f"{api.zone}/instances", timeout=30).status_code for _ in range(3)]

    assert expected is not None
    assert codes == [expected.code, expected.code, 200]


def test_a_lost_reply_is_on_record_as_one(emulator: Emulator, api: Api) -> None:
    emulator.inject(Fault("reply_lost_before", "instances.insert"))
    with pytest.raises(requests.ConnectionError):
        api.insert()

    assert (emulator.calls[-1].name, emulator.calls[-1].status) == ("instances.insert", 0)


def test_an_unknown_kind_is_refused(emulator: Emulator) -> None:
    url = emulator.compute_url.replace("/compute/v1/", "/_emulator/faults")

    assert requests.post(url, json={"kind": "earthquake"}, timeout=30).status_code == 400


def test_a_fault_that_never_strikes_is_no_fault() -> None:
    with pytest.raises(ValueError, match="at least once"):
        Fault("slow", times=0)
