"""Zones in order of preference: the next one when one is full, an honest end when all are."""

from conftest import PROJECTS

from gce_backend.emulator import Fault

PLAIN = PROJECTS / "plain"
TWO_ZONES = ["-P", "gce.zones=[europe-west1-b,europe-west4-a]"]


def test_a_full_zone_is_passed_over(cloud):
    cloud.emulator.inject(Fault("no_capacity"))

    code, output = cloud.mlflow_run(PLAIN, *TWO_ZONES)

    assert code == 0, output
    assert "trying the next zone" in output
    assert cloud.only_run().data.tags["gce.zone"] == "europe-west4-a"


def test_when_every_zone_is_full_the_run_fails_and_nothing_bills(cloud):
    cloud.emulator.inject(Fault("no_capacity", times=None))

    code, output = cloud.mlflow_run(PLAIN, *TWO_ZONES)

    assert code == 1, output
    assert "No instance exists" in output
    run = cloud.only_run()
    assert (run.info.status, run.data.tags["gce.end_reason"]) == ("FAILED", "no_capacity")
