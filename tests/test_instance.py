"""The insert body: what the lab's gcloud flags ask for, plus what keeps an instance from leaking.

The bodies of all presets lie in ``golden/``; after a change on purpose, write them anew with
``UPDATE_GOLDEN=1 pytest tests/test_instance.py`` and read the difference.
"""

import functools
import json
import os
from pathlib import Path

import jsonschema
import pytest
from discovery import validator_of

from gce_backend.compose import defaults_dir
from gce_backend.config import load_settings
from gce_backend.errors import ConfigError
from gce_backend.instance import Agent, insert_body, instance_name, label_value
from gce_backend.ssh_state import metadata_line

GOLDEN = Path(__file__).parent / "golden"
PRESETS = sorted(path.stem for path in (defaults_dir() / "machine").glob("*.yaml"))
RUN_ID = "0123456789abcdef0123456789abcdef"
ENVIRON = {"GOOGLE_CLOUD_PROJECT": "a-project", "MLFLOW_GCE_BUCKET": "a-bucket"}
GPU_PRESETS = {"t4", "l4", "a100", "h100"}
KNOWN_FIELDS = {
    "name",
    "description",
    "machineType",
    "labels",
    "disks",
    "networkInterfaces",
    "serviceAccounts",
    "scheduling",
    "metadata",
    "reservationAffinity",
}


@pytest.fixture(autouse=True)
def _cloud(monkeypatch):
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)


@functools.cache
def settings_for(machine="n1-standard-2", *, spot=False, **parameters):
    chosen = {"machine": machine, "machine.spot": str(spot).lower(), **parameters}
    return load_settings(Path(os.devnull), parameters=chosen, environ=ENVIRON)


def body_for(settings):
    return insert_body(
        settings,
        settings.zones[0],
        run_id=RUN_ID,
        attempt=1,
        spec_uri=f"gs://a-bucket/mlflow-gce/runs/{RUN_ID}/spec.json",
        agent=Agent("a-bucket", "mlflow-gce/tools/agent-1234.pyz", "ab" * 32),
        deadline=1_800_000_000.0,
        owner="Ada.Lovelace@example.com",
        ssh_key=metadata_line("ssh-ed25519 AAAA", 1_800_000_000.0),
    )


def without_script(body):
    """The body as the golden files hold it: the script has a test of its own."""
    items = [item for item in body["metadata"]["items"] if item["key"] != "startup-script"]
    return {**body, "metadata": {"items": items}}


@pytest.mark.parametrize("spot", [False, True], ids=["standard", "spot"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_asks_for_exactly_its_golden_body(preset, spot):
    body = without_script(body_for(settings_for(preset, spot=spot)))
    file = GOLDEN / f"{preset}{'-spot' if spot else ''}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")

    assert body == json.loads(file.read_text())


@pytest.mark.parametrize("spot", [False, True], ids=["standard", "spot"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_body_is_valid_and_complete(preset, spot):
    settings = settings_for(preset, spot=spot)
    body = body_for(settings)
    zone, machine = settings.zones[0], settings.machine

    validator_of("Instance").validate(body)
    assert set(body) == KNOWN_FIELDS | ({"guestAccelerators"} if preset == "t4" else set())
    assert body["machineType"] == f"zones/{zone}/machineTypes/{machine.machine_type}"
    scheduling = body["scheduling"]
    assert scheduling["instanceTerminationAction"] == "DELETE"
    assert scheduling["maxRunDuration"] == {"seconds": str(24 * 3600 + 30 * 60)}
    assert scheduling["automaticRestart"] is False
    assert scheduling["provisioningModel"] == ("SPOT" if spot else "STANDARD")
    stays = spot or preset in GPU_PRESETS
    assert scheduling["onHostMaintenance"] == ("TERMINATE" if stays else "MIGRATE")
    (disk,) = body["disks"]
    assert disk["boot"] is True
    assert disk["autoDelete"] is True
    assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/{machine.disk_type}"


@pytest.mark.parametrize("preset", sorted(GPU_PRESETS))
def test_gpu_presets_boot_an_image_with_a_driver(preset):
    settings = settings_for(preset)

    assert "nvidia" in settings.machine.image
    assert settings.machine.gpus == 1


def test_a_gpu_is_attached_only_where_the_type_does_not_carry_it():
    t4 = body_for(settings_for("t4"))

    assert t4["guestAccelerators"] == [
        {
            "acceleratorType": "zones/europe-west1-b/acceleratorTypes/nvidia-tesla-t4",
            "acceleratorCount": 1,
        }
    ]


def test_c4_takes_hyperdisk_only():
    assert settings_for("c4-standard-4").machine.disk_type == "hyperdisk-balanced"


def test_the_default_asks_for_what_the_lab_asks_for():
    settings = load_settings(Path(os.devnull), environ=ENVIRON)
    body = body_for(settings)

    assert settings.zones[0] == "europe-west1-b"
    assert body["machineType"].endswith("/n1-standard-2")
    assert body["disks"][0]["initializeParams"]["diskSizeGb"] == "50"
    scopes = body["serviceAccounts"][0]["scopes"]
    assert "https://www.googleapis.com/auth/devstorage.read_write" in scopes
    assert "https://www.googleapis.com/auth/compute" in scopes  # to delete itself


def test_the_schema_catches_what_it_is_there_for():
    """An unknown field, a number for a string and a bad enum are refused."""
    body = body_for(settings_for())
    for wrong in (
        {**body, "machinetype": "x"},
        {**body, "disks": [{**body["disks"][0], "diskSizeGb": 50}]},
        {**body, "scheduling": {**body["scheduling"], "provisioningModel": "SPOTTY"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator_of("Instance").validate(wrong)


def test_the_startup_script_carries_the_agents_checksum_and_no_placeholder():
    body = body_for(settings_for())
    (script,) = [i["value"] for i in body["metadata"]["items"] if i["key"] == "startup-script"]

    assert "ab" * 32 in script
    assert "@" not in script.replace("$@", "")
    assert len(script) < 262_144


def test_a_name_is_the_run_and_the_attempt_and_fits():
    name = instance_name(RUN_ID, 2)

    assert name == f"mlflow-{RUN_ID}-2"
    assert len(name) <= 63


@pytest.mark.parametrize("user", ["Ada.Lovelace@example.com", "", "x" * 100, "ünï cödé"])
def test_an_owner_becomes_a_valid_label(user):
    value = label_value(user)

    assert len(value) <= 63
    assert all(c.islower() or c.isdigit() or c in "-_" for c in value)


def test_no_external_address_when_none_is_wanted():
    body = body_for(settings_for(**{"gce.external_ip": "false"}))

    assert "accessConfigs" not in body["networkInterfaces"][0]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_in_a_zone_that_does_not_offer_it_is_refused(preset):
    with pytest.raises(ConfigError, match=r"not offered in mars-north1-a\. .*Allowed: "):
        settings_for(preset, **{"gce.zones": "[mars-north1-a]"})
