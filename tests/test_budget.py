"""Money as a deadline: what max_cost_usd buys, at the dearest place the run may come to."""

import pytest

from gce_backend.budget import usd_per_hour, within_cost
from gce_backend.config import load_settings
from gce_backend.errors import ConfigError


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "a-project")
    monkeypatch.setenv("MLFLOW_GCE_BUCKET", "a-bucket")
    return lambda **parameters: load_settings(tmp_path, parameters=parameters)


def test_the_whole_life_of_an_instance_costs_no_more(settings):
    found = within_cost(settings(**{"machine": "[n1-standard-2,l4]", "gce.max_cost_usd": "2"}))

    for each in found.choices:
        for zone in each.zones:
            hours = each.gce.max_hours + each.gce.rescue_minutes / 60
            assert usd_per_hour(each, zone) * hours <= 2.0 + 1e-9
    assert 0 < found.gce.max_hours < 24


def test_more_money_than_hours_leaves_the_hours(settings):
    limited = within_cost(settings(**{"gce.max_hours": "2", "gce.max_cost_usd": "100"}))

    assert limited.gce.max_hours == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gce.max_cost_usd": "0.01"}, "does not even pay for"),
        ({"gce.max_cost_usd": "5", "machine.machine_type": "x9-mega"}, "no list price is known"),
    ],
)
def test_a_limit_that_cannot_be_held_is_refused(settings, parameters, message):
    with pytest.raises(ConfigError, match=message):
        within_cost(settings(**parameters))
