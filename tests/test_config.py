"""Settings: composed from conf/, held against the schema, wrong ones named before they cost."""

from pathlib import Path

import pytest

from gce_backend.config import load_settings, read_endpoints
from gce_backend.errors import ConfigError

CHECKOUT = Path(__file__).parent.parent
CLOUD = {"GOOGLE_CLOUD_PROJECT": "a-project", "MLFLOW_GCE_BUCKET": "a-bucket"}
EMULATED = {
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": "http://127.0.0.1:1234/compute/v1/",
    "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1235",
}


@pytest.fixture(autouse=True)
def _cloud(monkeypatch):
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)


def settings(directory, **arguments):
    return load_settings(directory, environ={**CLOUD, **EMULATED}, **arguments)


def test_a_project_without_conf_gets_the_packaged_defaults(tmp_path):
    found = settings(tmp_path)

    assert (found.machine.name, found.zones[0]) == ("n1-standard-2", "europe-west1-b")
    assert (found.project, found.bucket) == ("a-project", "a-bucket")
    assert found.gce.results.require == []


def test_this_project_requires_the_labs_files(tmp_path):
    assert settings(CHECKOUT).gce.results.require == ["metrics.json", "model.pt"]


def test_a_projects_own_preset_and_values_win(tmp_path):
    machine = tmp_path / "conf" / "machine"
    machine.mkdir(parents=True)
    (machine / "mine.yaml").write_text(
        "name: mine\nmachine_type: c3-standard-88\n"
        "image: projects/p/global/images/i\nzones: [a-b-c]\n"
    )
    (tmp_path / "conf" / "config.yaml").write_text(
        "defaults: [{machine: mine}, {gce: default}, _self_]\ngce: {max_hours: 3}\n"
    )

    found = settings(tmp_path)

    assert (found.machine.machine_type, found.zones) == ("c3-standard-88", ("a-b-c",))
    assert found.gce.max_hours == 3


def test_a_projects_config_that_mentions_neither_group_gets_both(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("lr: 0.1\n")

    found = settings(tmp_path, parameters={"machine": "l4"}, training_words=["lr=0.2"])

    assert found.machine.machine_type == "g2-standard-4"


def test_backend_config_is_a_map_of_overrides_and_parameters_win_over_it(tmp_path):
    found = settings(
        tmp_path,
        backend_config={
            "machine": "l4",
            "machine.spot": True,
            "gce.zones": ["europe-west1-c"],
            "gce.max_hours": 2,
            "ENV_MANAGER": None,
            "SYNCHRONOUS": False,
        },
        parameters={"gce.max_hours": "5"},
    )

    assert (found.machine.name, found.machine.spot) == ("l4", True)
    assert (found.zones, found.gce.max_hours) == (("europe-west1-c",), 5)


WRONG = [
    ({"machine": "n1-standrd-2"}, r"machine=n1-standrd-2.*Did you mean 'n1-standard-2'"),
    ({"machine.spott": "true"}, r"unknown key 'machine.spott'. Did you mean 'machine.spot'"),
    ({"machine.disk_gb": "big"}, r"machine.disk_gb: Value 'big'.*Integer"),
    ({"machine.spot": "maybe"}, r"machine.spot: Value 'maybe' is not a valid bool"),
    ({"gce.zones": "[europe-west1-x]"}, r"not offered in europe-west1-x"),
    ({"gce.zones": "[]"}, r"not offered in an empty list"),
    ({"machine": "a100", "gce.zones": "[europe-west1-b]"}, r"a2-highgpu-1g.*not offered"),
    ({"gce.bucket": "gs://a-bucket"}, r"only the bucket's name"),
    ({"gce.bucket": "-a-bucket"}, r"gce.bucket=-a-bucket: no bucket can have this name"),
    ({"gce.bucket": "A-bucket"}, r"gce.bucket=A-bucket: no bucket .* lower-case"),
    ({"gce.prefix": "/a/"}, r"gce.prefix=/a/: .*without a slash"),
    ({"gce.prefix": "a//b"}, r"gce.prefix=a//b: .*empty parts"),
    ({"gce.prefix": ""}, r"gce.prefix=: .*as in mlflow-gce"),
    ({"gce.zones": "europe-west1-b"}, r"a list; write gce.zones=\[europe-west1-b\]$"),
    ({"gce.zones": "[[europe-west1-b]]"}, r"not offered in \['europe-west1-b'\]"),
    ({"gce.results.require": "a"}, r"write gce.results.require=\[a\]$"),
    ({"gce.ssh.via": "foo"}, r"gce.ssh.via: .*one of \[external, internal, iap, none\]\.$"),
    ({"gce.ssh": "iap"}, r"gce.ssh=iap: it takes no value itself. Allowed: gce.ssh.via$"),
    ({"machine.zones": "[x]"}, r"machine.zones=.*'x' is no zone.*\[europe-west1-b\]"),
    ({"machine.zones": "[]"}, r"machine.zones=\[\]: '' is no zone"),
    ({"machine.machine_type": ""}, r"machine.machine_type: it must not be empty"),
    ({"machine": "l4,t4"}, r"machines that are tried in turn: machine=\[l4,t4\]$"),
    ({"gce.project": "A B"}, r"gce.project=A B: no project can have this id"),
    ({"machine.disk_gb": "-4"}, r"machine.disk_gb=-4: a boot disk has at least 10 GB"),
    ({"gce.max_hours": "0"}, r"gce.max_hours=0"),
    ({"gce.max_hours": "3000"}, r"gce.max_hours=3000.*2880"),
    ({"gce.grace_seconds": "-1"}, r"must not be negative"),
    ({"gce.network": "{{"}, r"gce.network=\{\{"),
]


@pytest.mark.parametrize(("parameters", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path, parameters, message):
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, parameters=parameters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [machine: nope]", "machine/nope"),
        ("a: [", "expected the node content"),
        ("defaults: [{machine: l4}, {gce: default}, _self_]\ngce: 3\n", "gce"),
        ("defaults: [{machine: l4}, {gce: default}, _self_]\nmachine: {spot: x}\n", "machine.spot"),
    ],
)
def test_a_configuration_that_composes_by_no_words_is_named(tmp_path, text, message):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(text)

    with pytest.raises(ConfigError, match=message):
        settings(tmp_path)


def test_an_unknown_key_of_the_backend_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'machin'. Did you mean 'machine'"):
        settings(tmp_path, backend_config={"machin": "l4"})


def test_a_map_in_the_backend_config_is_what_its_dotted_keys_are(tmp_path):
    nested = {"machine": {"spot": True}, "gce": {"max_hours": 2, "ssh": {"via": "iap"}}}

    found = settings(tmp_path, backend_config={**nested, "gce.stall_minutes": 5})

    assert (found.machine.spot, found.gce.max_hours, found.gce.ssh_via) == (True, 2, "iap")
    assert settings(tmp_path, backend_config={"gce": {}}).gce == settings(tmp_path).gce
    with pytest.raises(ConfigError, match=r"unknown key 'gce.hours'"):
        settings(tmp_path, backend_config={"gce": {"hours": 2}})
    with pytest.raises(ConfigError, match=r"unknown key 'gce'. .*Allowed: gce\."):
        settings(tmp_path, backend_config={"gce": 2})


TRAINING_WRONG = [
    ("trainer.epochs=ten", r"trainer.epochs: expected a number like the default 5, got 'ten'"),
    ("trainer.epochs=1.5", r"trainer.epochs: expected a whole number like the default 5, got 1.5"),
    ("trainer.epochs=nan", r"expected a whole number like the default 5, got nan"),
    ("trainer.epochs=true", r"trainer.epochs: expected a number like the default 5, got True"),
    ("trainer.epoch=3", r"unknown key 'trainer.epoch'. Did you mean 'trainer.epochs'"),
    ("model=cnnn", r"no such model. Did you mean 'cnn'"),
    ("optimizer.lrr=3", r"Did you mean 'optimizer.lr'"),
]


@pytest.mark.parametrize(("word", "message"), TRAINING_WRONG)
def test_a_training_word_that_cannot_work_fails_before_anything_costs(word, message):
    with pytest.raises(ConfigError, match=message):
        settings(CHECKOUT, training_words=[word])


@pytest.mark.parametrize("word", ["++trainer.epochs=ten", "++trainer.epochs=1.5"])
def test_a_type_can_be_changed_on_purpose(word):
    settings(CHECKOUT, training_words=[word])


@pytest.mark.parametrize(
    "word",
    ["trainer.epochs=2.0", "optimizer.lr=1", "trainer.patience=3", "gce.max_hours=0.5"],
)
def test_a_number_that_only_is_written_otherwise_passes(word):
    """MLflow's numbers are floats, and null stands for any type."""
    settings(CHECKOUT, training_words=[word])


def test_a_default_that_only_a_job_can_resolve_is_no_obstacle(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("folder: ${hydra:runtime.cwd}/data\n")

    settings(tmp_path, training_words=["folder=elsewhere"])


@pytest.mark.parametrize(
    ("variable", "parameter"),
    [("MLFLOW_GCE_BUCKET", "bucket"), ("GOOGLE_CLOUD_PROJECT", "project")],
)
def test_without_project_or_bucket_both_ways_out_are_named(
    tmp_path, monkeypatch, variable, parameter
):
    monkeypatch.delenv(variable)

    with pytest.raises(ConfigError, match=f"no .*{parameter} is configured") as caught:
        settings(tmp_path)

    assert f"-P gce.{parameter}=" in str(caught.value)
    assert "gcloud auth application-default login" in str(caught.value)
    assert "mlflow-gce emulator exec" in str(caught.value)


@pytest.mark.parametrize("name", sorted(EMULATED))
def test_plain_http_to_another_machine_is_refused(name):
    with pytest.raises(ConfigError, match="in the clear"):
        read_endpoints({**EMULATED, name: "http://10.0.0.7:1234/compute/v1/"})


@pytest.mark.parametrize("wrong", ["nonsense", "http://127.0.0.1:99999", "http://[::1", "http://"])
@pytest.mark.parametrize("name", sorted(EMULATED))
def test_an_endpoint_that_is_no_url_is_refused(name, wrong):
    with pytest.raises(ConfigError, match=f"{name}=.*it must be a URL"):
        read_endpoints({**EMULATED, name: wrong})


def test_a_name_that_only_begins_like_a_loopback_address_is_refused():
    wrong = {**EMULATED, "STORAGE_EMULATOR_HOST": "http://127.example.com:1235"}

    with pytest.raises(ConfigError, match="in the clear"):
        read_endpoints(wrong)


@pytest.mark.parametrize("name", sorted(EMULATED))
def test_half_an_emulator_is_refused(name):
    with pytest.raises(ConfigError, match="Set both"):
        read_endpoints({name: EMULATED[name]})


def test_without_overrides_the_endpoints_are_googles():
    assert not read_endpoints({}).emulated


@pytest.mark.parametrize(
    "given",
    [
        {"backend_config": {"machine": ["l4", "n1-standard-4"], "machine.spot": True}},
        {"parameters": {"machine": "[l4, n1-standard-4]", "machine.spot": "true"}},
        {
            "parameters": {"machine": "[t4,a100]", "machine.spot": "true"},
            "training_words": ["machine=[l4,n1-standard-4]"],
        },
    ],
)
def test_machine_may_be_an_ordered_list(tmp_path, given):
    found = settings(tmp_path, **given)

    assert [each.machine.name for each in found.choices] == ["l4", "n1-standard-4"]
    assert all(each.machine.spot for each in found.choices)
    assert found.choices[1].zones == tuple(found.others[0].zones)


def test_a_machine_in_the_trainings_words_comes_before_a_list(tmp_path):
    found = settings(tmp_path, parameters={"machine": "[t4,a100]"}, training_words=["machine=l4"])

    assert [each.machine.name for each in found.choices] == ["l4"]


def test_every_machine_of_a_list_must_be_offered_where_asked(tmp_path):
    with pytest.raises(ConfigError, match=r"a2-highgpu-1g.*not offered"):
        settings(tmp_path, parameters={"machine": "[l4,a100]", "gce.zones": "[europe-west1-b]"})


FRACTIONS = (
    "max_hours",
    "rescue_minutes",
    "boot_minutes",
    "grace_seconds",
    "system_metrics",
    "stall_minutes",
    "max_cost_usd",
)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"machine": "[]"}, "names no machine"),
        ({"machine": "[l4,t44]"}, r"machine=t44"),
        ({"gce.max_attempts": "0"}, "at least one"),
        ({"gce.max_cost_usd": "-1"}, "above 0"),
        ({"gce.max_parallel": "0"}, r"gce.max_parallel=0: .*null for no limit"),
        ({"gce.boot_minutes": "0"}, r"gce.boot_minutes=0.*above 0"),
        ({"machine.disk_gb": "0"}, r"machine.disk_gb=0: .*at least 10 GB"),
        ({"machine.gpus": "-1"}, r"machine.gpus=-1: must not be negative"),
        *(
            ({f"gce.{key}": value}, rf"gce.{key}={value}: a number that is finite is needed")
            for key in FRACTIONS
            for value in ("nan", "inf", "-inf")
        ),
    ],
)
def test_limits_that_make_no_sense_are_named(tmp_path, parameters, message):
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, parameters=parameters)
