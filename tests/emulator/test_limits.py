"""Cores and memory of the machine type, where the kernel can hold an instance to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gce_backend.emulator import Emulator
from gce_backend.emulator.limits import Hierarchy, Limits, hierarchies, joining, places

from .conftest import LONG, ZONE, Api, eventually
from .test_instances import processes_with

HOG = """python3 -c 'x = b"x" * (1400 << 20); print("it fits")'; echo "hog ended with $?" """


@pytest.fixture
def limits() -> Limits:
    """This machine's, where it has some."""
    found = Limits.open(f"trial-{os.getpid()}")
    found.close()
    if found.refused:
        # Not skipped: where CI has none, that is no fault of CI.
        pytest.xfail(f"no limits on this machine: {found.in_words()}")
    return found


def machine(name: str) -> str:
    return f"zones/{ZONE}/machineTypes/{name}"


@pytest.mark.flow
def test_a_memory_hog_is_ended_alone(limits: Limits, emulator: Emulator, api: Api) -> None:
    script = f"sleep 600 & {HOG}; kill -0 $! && echo 'the rest lives'"
    api.create("small", startup=script, machineType=machine("e2-micro"))  # 1 GiB
    api.create("large", startup=HOG, machineType=machine("e2-standard-2"))
    eventually(lambda: "the rest lives" in api.serial("small").splitlines(), "the small one's end")
    eventually(lambda: "hog ended" in api.serial("large"), "the large one's end")

    assert "hog ended with 137" in api.serial("small")
    assert "it fits" in api.serial("large").splitlines()
    assert api.get("small").json()["status"] == "RUNNING"


@pytest.mark.flow
def test_an_instance_counts_the_cores_of_its_machine_type(
    limits: Limits, emulator: Emulator, api: Api
) -> None:
    api.create("one", startup="echo cores=$(nproc)", machineType=machine("n1-standard-1"))
    api.create("many", startup="echo cores=$(nproc)", machineType=machine("n1-standard-96"))
    for name in ("one", "many"):
        eventually(lambda name=name: "cores=" in api.serial(name), "its answer")  # type: ignore[misc]

    assert "cores=1" in api.serial("one").splitlines()
    assert f"cores={len(os.sched_getaffinity(0))}" in api.serial("many").splitlines()


@pytest.mark.flow
def test_groups_go_with_their_instance_and_with_the_emulator(limits: Limits) -> None:
    with Emulator(boot_seconds=0.04) as emulator:
        api = Api(emulator.compute_url, emulator.project)
        instance = api.create(machineType=machine("n1-standard-1"))
        groups = places(emulator.mark, hierarchies())
        own = [group / instance["id"] for group in groups]
        made = [group.is_dir() for group in own]
        api.finish(api.delete().json())
        left = [group.exists() for group in own]

    assert made == [True] * len(groups)
    assert left == [False] * len(groups)
    assert [group for group in groups if group.exists()] == []


@pytest.mark.flow
def test_what_hides_from_everything_else_is_found_in_its_group(limits: Limits) -> None:
    """Without namespaces of its own: another session, and nothing in the environment."""
    hidden = f"(env -i /usr/bin/setsid /bin/sleep {LONG} &); sleep 600"
    with Emulator(boot_seconds=0.04, shutdown_seconds=0.2, isolated=False) as emulator:
        api = Api(emulator.compute_url, emulator.project)
        api.create(startup=hidden)
        eventually(lambda: processes_with(LONG), "it runs")
        api.finish(api.delete().json())

        assert eventually(lambda: not processes_with(LONG), "it is gone")


def test_without_control_groups_there_are_no_limits_and_it_is_said() -> None:
    limits = Limits.open("mark", [])

    assert limits.make("1", 1, 2**30) == []
    assert limits.in_words() == (
        "no limit of cores: this machine has no such control groups; "
        "no limit of memory: this machine has no such control groups"
    )
    assert joining([], ["true"]) == ["true"]


def test_a_group_that_may_not_be_made_is_a_reason_not_an_error(tmp_path: Path) -> None:
    limits = Limits.open("mark", [Hierarchy("memory", tmp_path / "not-there", 1)])

    assert "No such file or directory" in limits.in_words()
    assert limits.make("1", 1, 2**30) == []


def test_version_two_is_told_what_its_files_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On files that stand for the kernel's: a machine has one of the two versions."""
    instance = tmp_path / "gce-emulator-mark" / "1"
    instance.mkdir(parents=True)
    for group in (tmp_path, instance.parent):
        (group / "cgroup.subtree_control").touch()
    for name in ("memory.max", "memory.swap.max", "cpuset.cpus"):
        (instance / name).touch()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    limits = Limits.open("mark", [Hierarchy(name, tmp_path, 2) for name in ("cpuset", "memory")])
    groups = limits.make("1", 2, 2**30)

    assert groups == [instance]
    assert (instance / "memory.max").read_text() == str(2**30)
    assert (instance / "memory.swap.max").read_text() == "0"
    assert (instance / "cpuset.cpus").read_text() == "0,1"
    assert limits.in_words() == "instances have the cores and memory of their machine type"


def test_instances_are_spread_over_the_cores(limits: Limits) -> None:
    shared = Limits.open(f"spread-{os.getpid()}")
    try:
        total = len(os.sched_getaffinity(0))
        if total < 2:
            pytest.xfail("there is one core")
        groups = [shared.make(str(number), 1, 2**30) for number in range(total)]
        cores = {(group / "cpuset.cpus").read_text() for *_, group in groups}
    finally:
        shared.close()

    assert len(cores) == total
