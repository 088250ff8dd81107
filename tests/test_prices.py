"""Estimates: every preset has a price in its first zone, and nobody pays less than a minute."""

import os
from pathlib import Path

import pytest

from gce_backend.compose import defaults_dir
from gce_backend.config import load_settings
from gce_backend.prices import Price, price
from gce_backend.request import usd_per_hour

ENVIRON = {"GOOGLE_CLOUD_PROJECT": "p", "MLFLOW_GCE_BUCKET": "b"}
PRESETS = sorted(path.stem for path in (defaults_dir() / "machine").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_price_in_each_of_its_zones_and_spot_is_cheaper(preset, monkeypatch):
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    standard = load_settings(Path(os.devnull), parameters={"machine": preset})
    spot = load_settings(Path(os.devnull), parameters={"machine": preset, "machine.spot": "true"})

    for zone in standard.zones:
        full, reduced = usd_per_hour(standard, zone), usd_per_hour(spot, zone)
        assert full is not None
        assert reduced is not None
        assert 0 < reduced < full


def test_the_labs_machine_costs_about_what_the_lab_says():
    known = price(
        "n1-standard-2", "europe-west1-b", spot=False, disk_type="pd-balanced", disk_gb=50
    )

    assert known is not None
    assert known.usd_per_hour == pytest.approx(0.1045 + 0.10 * 50 / 730 + 0.005)


def test_a_minute_is_the_least():
    assert Price(0.6).cost(1) == pytest.approx(0.01)
    assert Price(0.6).cost(3600) == pytest.approx(0.6)


def test_an_unknown_machine_has_no_made_up_price():
    assert (
        price("x9-standard-2", "europe-west1-b", spot=False, disk_type="pd-ssd", disk_gb=1) is None
    )
