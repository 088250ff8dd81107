"""What happens to an instance while something else happens to it."""

from __future__ import annotations

import pytest

from gce_backend.emulator import Emulator

from .conftest import Api, eventually

pytestmark = pytest.mark.flow  # real processes and servers


def settle(emulator: Emulator) -> None:
    """Until nothing goes on in the background."""
    eventually(lambda: not emulator._cloud._tasks, "an end of all that goes on")


def reboots_when_it_goes_down(api: Api) -> None:
    """``reboot`` returns once the emulator has taken it; then it waits for the end under way."""
    items = [
        {"key": "startup-script", "value": "echo up again"},
        {"key": "shutdown-script", "value": "reboot"},
    ]
    api.create(metadata={"items": items})
    eventually(lambda: "startup-script exit" in api.serial(), "it has booted")


def test_a_reboot_during_the_deletion_brings_nothing_back(emulator: Emulator, api: Api) -> None:
    reboots_when_it_goes_down(api)
    directory = emulator.instance_directory("vm")

    assert "error" not in api.finish(api.delete().json())
    settle(emulator)

    assert api.get().status_code == 404
    assert not directory.exists()


def test_a_reboot_during_the_stop_leaves_it_stopped(emulator: Emulator, api: Api) -> None:
    reboots_when_it_goes_down(api)

    api.finish(api.post("vm", "stop").json())
    settle(emulator)

    assert api.get().json()["status"] == "TERMINATED"
    assert api.serial().splitlines().count("up again") == 1
