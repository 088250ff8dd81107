"""What instances use of a region's quotas, and who may still have one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gce_backend.config import Settings, load_settings
from gce_backend.quota import free_quotas, needed_quota
from gce_backend.sweep.capacity import Capacity


def settings(**machine: Any) -> Settings:
    found = load_settings(
        Path("/dev/null"),
        parameters={
            "machine": machine.pop("preset", "n1-standard-2"),
            "gce.bucket": "b",
            "gce.project": "p",
        },
        environ={},
    )
    changed = dataclasses.replace(found.machine, **machine)
    zones = ("europe-west1-b", "europe-west1-c", "us-central1-a")
    return dataclasses.replace(found, machine=changed, zones=zones)


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("n1-standard-2", {"CPUS": 2, "SSD_TOTAL_GB": 50}),
        ("n2-standard-4", {"N2_CPUS": 4}),
        ("c4-standard-4", {"HDB_TOTAL_GB": 50}),
        ("t4", {"CPUS": 4, "NVIDIA_T4_GPUS": 1, "SSD_TOTAL_GB": 100}),
        ("l4", {"CPUS": 4, "NVIDIA_L4_GPUS": 1}),
        ("a100", {"A2_CPUS": 12, "NVIDIA_A100_GPUS": 1}),
        ("h100", {"NVIDIA_H100_GPUS": 1}),
    ],
)
def test_each_preset_is_counted_against_its_own_quotas(preset: str, wanted: Any) -> None:
    found = needed_quota(settings(preset=preset).machine, external_ip=True)

    assert found.items() >= {**wanted, "INSTANCES": 1, "IN_USE_ADDRESSES": 1}.items()
    cpus = {metric for metric in found if metric.endswith("CPUS")}
    assert cpus == {metric for metric in wanted if metric.endswith("CPUS")}


def test_a_full_region_gives_way_to_the_next_and_then_jobs_wait() -> None:
    free = {"europe-west1": {"CPUS": 4.0}, "us-central1": {"CPUS": 2.0}}
    capacity = Capacity(lambda region: dict(free[region]), clock=lambda: 0.0)
    job = settings()

    zones = [found and found.zones for found in (capacity.reserve(n, job) for n in range(4))]

    assert zones[0] == job.zones
    assert zones[2] == ("us-central1-a",)
    assert zones[3] is None
    capacity.release(0)
    again = capacity.reserve(4, job)
    assert again is not None and again.zones == ("europe-west1-b", "europe-west1-c")


def test_an_instance_is_counted_once_when_the_figures_are_read_again() -> None:
    now = [0.0]
    free = {"CPUS": 4.0}
    capacity = Capacity(lambda region: dict(free), clock=lambda: now[0])
    job = dataclasses.replace(settings(), zones=("europe-west1-b",))
    assert capacity.reserve(0, job)
    now[0] = 1.0
    capacity.exists(0)
    now[0], free["CPUS"] = 30.0, 2.0  # the region counts it now

    assert capacity.reserve(1, job)
    assert not capacity.reserve(2, job)


@pytest.mark.parametrize(("limit", "fits"), [(0.0, False), (4.0, True)])
def test_spot_instances_use_preemptible_quota_only_where_there_is_any(
    limit: float, fits: bool
) -> None:
    rows = [
        {"metric": "CPUS", "limit": 8.0, "usage": 8.0},
        {"metric": "PREEMPTIBLE_CPUS", "limit": limit, "usage": 0.0},
    ]
    capacity = Capacity(lambda region: free_quotas({"quotas": rows}), clock=lambda: 0.0)

    assert (capacity.reserve(0, settings(spot=True)) is not None) is fits


def test_what_is_lacking_is_named_for_each_region() -> None:
    free = {"europe-west1": {"CPUS": 1.0}, "us-central1": {"CPUS": 9.0, "INSTANCES": 0.0}}
    capacity = Capacity(lambda region: dict(free[region]), clock=lambda: 0.0)

    lacking = capacity.lacking(settings())

    assert [str(each) for each in lacking] == [
        "2 of CPUS in europe-west1, where 1 is left",
        "1 of INSTANCES in us-central1, where 0 is left",
    ]
    assert capacity.reserve(0, settings()) is None
    assert capacity.reserve(0, settings(), anyway=True) == settings()
