"""The real gcloud, told by environment variables only; and a lab's script, word for word."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from discovery import check_answers

from gce_backend.emulator.calls import Call

from .conftest import ZONE
from .test_command import COMMAND

pytestmark = [
    pytest.mark.flow,
    pytest.mark.rotating(one_in=3),
    pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="gcloud's ssh insists on port 22: needs root"),
]

BUCKET = "isae-sdd-de-2526"  # the one the lab's script names
CREATE = (
    f"compute instances create vm --zone={ZONE} --image-family=pytorch-latest-cpu "
    "--image-project=deeplearning-platform-release --machine-type=n1-standard-2 "
    "--scopes=storage-rw --boot-disk-size=50GB"
)
LIST = "compute instances list --format=value(name,status)"
COLUMNS = ["NAME", "ZONE", "MACHINE_TYPE", "PREEMPTIBLE", "INTERNAL_IP", "EXTERNAL_IP", "STATUS"]


@dataclass(frozen=True)
class Started:
    """What `mlflow-gce emulator start` has started, known by its `env` alone."""

    environment: dict[str, str]

    @property
    def calls(self) -> list[Call]:
        """From the control endpoint, which is on the compute port."""
        url = self.environment["CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"]
        control = url.replace("/compute/v1/", "/_emulator/calls")
        return [Call(**call) for call in requests.get(control, timeout=30).json()]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    root = ["--root", str(tmp_path_factory.mktemp("emulator"))]
    options = ["--bucket", BUCKET, "--boot-seconds", "0.2", "--legacy-images"]
    subprocess.run([*COMMAND, "start", *root, *options], check=True, timeout=60)
    try:
        text = subprocess.run(
            [*COMMAND, "env", *root], check=True, capture_output=True, text=True, timeout=60
        ).stdout
        words = [shlex.split(line)[1] for line in text.splitlines()]
        started = Started(dict(word.split("=", 1) for word in words))
        yield started
        check_answers(started.calls)
    finally:
        subprocess.run([*COMMAND, "stop", *root], check=True, timeout=60)


@pytest.fixture(autouse=True)
def _clean_slate() -> None:
    """Every test deletes what it made; gcloud would not see another's erased."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def environment(emulator: Started, home: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    return {**kept, **emulator.environment, "HOME": str(home), "USER": getpass.getuser()}


class Gcloud:
    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._environment = environment
        self._directory = directory

    def __call__(self, words: str, *more: str) -> str:
        done = subprocess.run(
            ["gcloud", *words.split(), *more],
            env=self._environment,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def gcloud(environment: dict[str, str], home: Path) -> Gcloud:
    return Gcloud(environment, home)


def test_an_instance_from_create_to_delete(gcloud: Gcloud, home: Path) -> None:
    created = gcloud(CREATE)
    listed = gcloud("compute instances list")
    described = gcloud(f"compute instances describe vm --zone={ZONE}")
    said = gcloud(f"compute ssh vm --zone={ZONE} --command", "echo on $(hostname)")
    (home / "file").write_text("content")
    gcloud(f"compute scp file vm:~ --zone={ZONE}")
    gcloud(f"compute scp vm:file back --zone={ZONE}")
    serial = gcloud(f"compute instances get-serial-port-output vm --zone={ZONE}")
    gcloud(f"compute instances add-metadata vm --zone={ZONE} --metadata=a=b")
    gcloud(f"compute instances stop vm --zone={ZONE}")
    gcloud(f"compute instances start vm --zone={ZONE}")
    gcloud(f"compute instances delete vm --zone={ZONE} --quiet")
    operations = gcloud(f"compute operations list --zones={ZONE} --format=value(operationType)")

    for table in (created, listed):
        names, values = (line.split() for line in table.splitlines())
        assert names == COLUMNS
        # PREEMPTIBLE is empty.
        assert values[:3] == ["vm", ZONE, "n1-standard-2"] and values[-1] == "RUNNING"
    assert "kind: compute#instance\n" in described
    assert "- https://www.googleapis.com/auth/devstorage.read_write" in described
    assert said.splitlines()[-1] == "on vm"  # before it, ssh-keygen at the first time
    assert (home / "back").read_text() == "content"
    assert "login" in serial
    assert operations.split() == ["delete", "start", "stop", "setMetadata", "insert"]
    assert gcloud(LIST) == ""


def test_two_instances_in_one_command(gcloud: Gcloud) -> None:
    gcloud(CREATE.replace(" vm ", " vm-a vm-b "))
    gcloud(f"compute instances stop vm-a vm-b --zone={ZONE}")
    listed = gcloud(LIST)
    gcloud(f"compute instances delete vm-a vm-b --zone={ZONE} --quiet")

    assert listed.split() == ["vm-a", "TERMINATED", "vm-b", "TERMINATED"]
    assert gcloud(LIST) == ""


def test_os_login(gcloud: Gcloud, emulator: Started) -> None:
    """An image family of Google's own projects, which gcloud names in a way of its own, too."""
    gcloud(
        f"compute instances create vm --zone={ZONE} --image-family=debian-12 "
        "--image-project=debian-cloud --metadata=enable-oslogin=TRUE"
    )
    said = gcloud(f"compute ssh vm --zone={ZONE} --command", "echo $USER")
    keys = gcloud("compute os-login ssh-keys list --format=value(FINGERPRINT)")
    gcloud(f"compute instances delete vm --zone={ZONE} --quiet")
    names = [call.name for call in emulator.calls if call.service == "oslogin"]

    assert said.splitlines()[-1] == "user_example_com"
    assert len(keys.split()) == 1
    assert names[:2] == ["oslogin.users.getLoginProfile", "oslogin.users.importSshPublicKey"]


def test_what_the_catalogue_lists(gcloud: Gcloud) -> None:
    zones = gcloud("compute zones list --format=value(name)").split()
    machines = gcloud(f"compute machine-types list --zones={ZONE} --format=value(name)").split()
    images = gcloud(
        "compute images list --project=debian-cloud --no-standard-images --format=value(family)"
    )

    assert ZONE in zones
    assert "n1-standard-2" in machines and "a2-highgpu-1g" not in machines
    assert "debian-12" in images.split()


def test_storage_commands(gcloud: Gcloud, home: Path) -> None:
    url = f"gs://{BUCKET}/tree"
    (home / "tree/sub").mkdir(parents=True)
    (home / "tree/sub/small").write_text("hello")
    (home / "tree/large").write_bytes(os.urandom(10_000_000))
    gcloud(f"storage cp -r tree gs://{BUCKET}/")
    listed = gcloud(f"storage ls -r {url}")
    shown = gcloud(f"storage cat {url}/sub/small")
    gcloud(f"storage cp {url}/large back-large")
    gcloud(f"storage mv {url}/sub/small {url}/moved")
    gcloud(f"storage rm -r {url}")

    assert f"{url}/sub/small" in listed
    assert shown.strip() == "hello"
    assert (home / "back-large").read_bytes() == (home / "tree/large").read_bytes()


# What the lab's own train.py does, as seen from outside: two files in the bucket at the end.
ADAPTER = """\
import argparse, json, os, urllib.request

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--output-gcs")
options = parser.parse_args()
bucket, _, prefix = options.output_gcs.removeprefix("gs://").partition("/")
epochs = list(range(1, options.epochs + 1))
metrics = {"epoch": epochs, "test_loss": [0.1] * len(epochs), "test_accuracy": [99.0] * len(epochs)}
for name, text in (("model.pt", "weights"), ("metrics.json", json.dumps(metrics))):
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/{bucket}/o"
    url += f"?uploadType=media&name={prefix}/{name}"
    urllib.request.urlopen(urllib.request.Request(url, data=text.encode()), timeout=30)
print("Results uploaded to", options.output_gcs)
"""


def test_the_labs_script_runs_unchanged(
    emulator: Started, gcloud: Gcloud, environment: dict[str, str], tmp_path: Path
) -> None:
    script = Path(__file__).with_name("train_remote.sh")
    (tmp_path / "train.py").write_text(ADAPTER)
    # Its `sleep 30` between two looks into the bucket is the only thing made shorter.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sleep").write_text("#!/bin/sh\nexec /bin/sleep 1\n")
    (tmp_path / "bin/sleep").chmod(0o755)
    done = subprocess.run(
        ["bash", str(script), "2"],
        env={**environment, "PATH": f"{tmp_path}/bin:{environment['PATH']}"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "==> Done! Results at gs://" in done.stdout
    assert gcloud(LIST) == ""
    deletes = [call for call in emulator.calls if call.name == "instances.delete"]
    assert deletes[-1].status == 200
