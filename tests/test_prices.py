"""Estimates: every preset has a price in its first zone, and nobody pays less than a minute."""

import json
import os
import time
from pathlib import Path

import pytest

from gce_backend.compose import defaults_dir
from gce_backend.config import load_settings
from gce_backend.emulator.billing import skus
from gce_backend.price_catalog import accelerators_of, machines_of, parts_of
from gce_backend.prices import (
    ACCELERATOR_USD_PER_HOUR,
    MACHINE_USD_PER_HOUR,
    PRICE_DATE,
    Price,
    cache_file,
    price,
    price_date,
)
from gce_backend.request import usd_per_hour

ENVIRON = {"GOOGLE_CLOUD_PROJECT": "p", "MLFLOW_GCE_BUCKET": "b"}
PRESETS = sorted(path.stem for path in (defaults_dir() / "machine").glob("*.yaml"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


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


def test_a_machine_costs_the_sum_of_its_parts_in_the_catalog():
    found = machines_of(parts_of(skus()))

    assert set(found) == {f"n1-standard-{n}" for n in (1, 2, 4, 8)} | {
        "e2-small",
        "e2-standard-4",
        "e2-standard-8",
    }
    for machine, regions in found.items():
        assert set(regions) == set(MACHINE_USD_PER_HOUR[machine])
        for region, pair in regions.items():
            assert pair == pytest.approx(MACHINE_USD_PER_HOUR[machine][region], rel=0.01)
    assert accelerators_of(parts_of(skus())) == ACCELERATOR_USD_PER_HOUR


def test_what_is_ambiguous_or_far_from_what_it_was_is_left_out():
    def changed(words, **changes):
        return [{**sku, **changes} if words in sku["description"] else sku for sku in skus()]

    cores = [sku for sku in skus() if sku["description"] == "E2 Instance Core running in Belgium"]
    (core,) = cores
    info = json.loads(json.dumps(core["pricingInfo"]).replace("23993000", "99993000"))
    twice = [*skus(), {**core, "pricingInfo": info}]
    assert "europe-west1" not in machines_of(parts_of(twice))["e2-standard-4"]
    dear = changed("E2 Instance Core running in Belgium", pricingInfo=info)
    assert "europe-west1" not in machines_of(parts_of(dear))["e2-standard-4"]
    monthly = json.loads(json.dumps(core["pricingInfo"]).replace('"h"', '"mo"'))
    other = changed("E2 Instance Core running in Belgium", pricingInfo=monthly)
    assert "europe-west1" not in machines_of(parts_of(other))["e2-standard-4"]
    assert "us-central1" in machines_of(parts_of(other))["e2-standard-4"]
    assert machines_of(parts_of([{"description": "E2 Instance Core running in Mars"}, {}])) == {}


def test_refreshed_prices_go_before_the_table_with_their_date():
    content = {
        "date": "2099-01-02",
        "machines": {"e2-standard-4": {"europe-west1": [0.2, 0.1]}},
        "accelerators": {"nvidia-tesla-t4": [0.5, 0.2]},
    }

    def cost(machine="e2-standard-4", **options):
        known = price(
            machine,
            "europe-west1-b",
            spot=False,
            disk_type="none",
            disk_gb=0,
            external_ip=False,
            **options,
        )
        return known.usd_per_hour

    before = cost()
    assert price_date() == PRICE_DATE
    cache_file().parent.mkdir()
    cache_file().write_text(json.dumps(content))
    assert cost() == 0.2 != before
    t4 = {"accelerator_type": "nvidia-tesla-t4", "accelerators": 1}
    assert cost("n1-standard-4", **t4) == pytest.approx(0.2090 + 0.5)
    assert price_date() == f"2099-01-02, some {PRICE_DATE}"
    for text in ("[]", "{", json.dumps({**content, "date": "2020-01-01"})):
        time.sleep(0.002)  # another moment of writing
        cache_file().write_text(text)
        assert (cost(), price_date()) == (before, PRICE_DATE)
