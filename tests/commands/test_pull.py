"""Downloads: the layout, the checks, and going on where a killed one stopped."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from mlflow.utils.proto_json_utils import message_to_json

from gce_backend.agent.paths import RunPaths
from gce_backend.download import Downloader, Item
from gce_backend.emulator import Fault
from gce_backend.errors import StorageError
from gce_backend.results import results
from gce_backend.storage import ObjectInfo

SIZE = 150_000_000  # a second or so on the emulator
MODEL = "m-" + "5" * 32


def run_with_results(store):
    run_id = store.store_run()
    root = store.artifacts(run_id)
    models = f"mlflow-gce/experiments/digits/models/{MODEL}/artifacts/"
    store.ends(
        run_id,
        files={
            f"{root}metrics.json": b'{"epoch": [1]}',
            f"{root}model.pt": b"weights",
            f"{root}deep/er/file with space.txt": b"",
            f"{models}MLmodel": b"flavors: {}",
        },
    )
    return run_id


def test_the_results_in_the_layout_of_the_run(store):
    run_id = run_with_results(store)

    done = store.run("pull", run_id[:8])

    assert done.returncode == 0, done.stderr
    (folder,) = (store.directory / "results").iterdir()
    assert folder.name.endswith(run_id[:8])
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "metrics.json": b'{"epoch": [1]}',
        "model.pt": b"weights",
        "deep/er/file with space.txt": b"",
        f"models/{MODEL}/MLmodel": b"flavors: {}",
    }
    assert "4 files, 32 B, checksums verified: results/" in done.stdout
    (folder / "model.pt").write_bytes(b"damaged")
    (folder / "notes.txt").write_text("mine")
    again = store.json("pull", "bold-crab-1", str(folder))
    assert again["lost"] == [] and len(again["files"]) == 4
    assert (folder / "model.pt").read_bytes() == b"weights"
    assert (folder / "notes.txt").read_text() == "mine"


def test_by_its_whole_id_from_the_bucket_alone_and_into_the_same_folder(store):
    """The store need not even be there, nor MLflow be imported."""
    run_id = run_with_results(store)
    assert store.run("pull", run_id).returncode == 0
    (folder,) = (store.directory / "results").iterdir()
    (folder / "model.pt").unlink()
    run = json.loads(message_to_json(store.client.get_run(run_id).to_proto()))
    store.put(store.paths(run_id).spec, {"tracking": {"run": run}})

    program = (
        "import sys; from gce_backend.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('mlflow' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "pull", run_id],
        cwd=store.directory,
        env={**store.environ, "MLFLOW_TRACKING_URI": "sqlite:////no/such/store.db"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0 and done.stderr == "False\n", done.stderr
    assert [path for path in (store.directory / "results").iterdir()] == [folder]
    assert (folder / "model.pt").read_bytes() == b"weights"


def test_what_the_bucket_has_lost_is_named_and_the_rest_is_there(store):
    run_id = run_with_results(store)
    manifest = store.paths(run_id).manifest
    name = f"{store.artifacts(run_id)}gone.bin"
    entry = {"bucket": store.bucket, "name": name, "size": 3, "md5": "", "crc32c": ""}
    known = json.loads(store.read(manifest))
    store.put(manifest, {**known, "objects": [*known["objects"], entry]})

    done = store.run("pull", run_id, "here")

    assert done.returncode == 1
    assert f"gs://{store.bucket}/{name}; it is not in the bucket" in done.stderr
    assert (store.directory / "here" / "model.pt").read_bytes() == b"weights"


def test_a_run_without_artifacts_and_a_run_that_is_not_there(store):
    run_id = store.store_run()
    assert "has no artifacts (yet)" in store.run("pull", run_id).stderr

    other = store.store_run()
    done = store.run("pull", "bold-crab-1")

    assert done.returncode == 1
    assert run_id in done.stderr and other in done.stderr and "Say which" in done.stderr
    assert (
        "no run of this backend has the id or name 'nobody'" in store.run("logs", "nobody").stderr
    )


def test_a_killed_pull_goes_on_where_it_was(store):
    run_id = store.store_run()
    data = os.urandom(SIZE)
    store.put(f"{store.artifacts(run_id)}big.bin", data)
    folder = store.directory / "here"
    first = store.start("pull", run_id, "here")
    end = time.monotonic() + 100
    while not any(path.stat().st_size > 3_000_000 for path in folder.glob("*-part")):
        assert time.monotonic() < end and first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    (part,) = folder.glob("*-part")
    there = part.stat().st_size
    assert 3_000_000 < there < SIZE

    done = store.run("pull", run_id, "here", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fetched"] == SIZE - there
    assert (folder / "big.bin").read_bytes() == data
    assert [path.name for path in folder.iterdir()] == ["big.bin"]


@pytest.fixture
def item(cloud, tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.emulator.storage_url)
    entry = cloud.put("folder/file[1].bin", b"0123456789")
    return Item(
        bucket=cloud.bucket,
        name=entry["name"],
        target=tmp_path / "file[1].bin",
        size=10,
        crc32c=entry["crc32c"],
        generation=entry["generation"],
    )


def downloader(moved=None):
    return Downloader(project="p", progress=(moved if moved is not None else []).append)


def test_a_wrong_checksum_leaves_no_file(item):
    moved = []
    with pytest.raises(StorageError, match="another checksum"):
        downloader(moved).download([dataclasses.replace(item, crc32c="AAAAAA==")])

    assert list(item.target.parent.glob("file*")) == []
    assert sum(moved) == 0


def test_parts_of_an_older_version_are_removed(item):
    old = item.target.with_name("file[1].bin.77.mlflow-gce-part")
    another = item.target.with_name("file[1].bin.x.77.mlflow-gce-part")
    for path in (old, another):
        path.write_text("0123")

    assert downloader().download([item]) == 10

    left = {path.name for path in item.target.parent.glob("file*")}
    assert left == {"file[1].bin", another.name}


def test_killed_between_the_last_piece_and_the_checksum(item):
    item.part.write_bytes(b"0123456789")

    assert downloader().download([item]) == 0

    assert item.target.read_bytes() == b"0123456789"
    assert not item.part.exists()


def test_killed_half_way(item):
    item.part.write_bytes(b"01234")

    assert downloader().download([item]) == 5

    assert item.target.read_bytes() == b"0123456789"


@pytest.mark.parametrize("kind", ["unavailable", "reply_lost_before"])
def test_a_fault_that_passes_is_waited_out(cloud, item, kind):
    cloud.emulator.inject(Fault(kind, "storage.objects.get", "*file?1?.bin", times=2))

    downloader().download([item])

    assert item.target.read_bytes() == b"0123456789"


def test_a_refusal_is_told_with_its_object(cloud, item):
    cloud.emulator.inject(Fault("forbidden", "storage.objects.get", "*file?1?.bin", times=None))

    with pytest.raises(
        StorageError, match=r"cannot download gs://.*file\[1\].bin: access is refused"
    ):
        downloader().download([item])


@pytest.mark.parametrize("in_the_way", ["file[1].bin/", "folder"])
def test_what_is_in_the_way_of_a_file_is_named(item, in_the_way):
    """A directory of its name, or a file where its directory has to be."""
    place = item.target.parent / in_the_way
    place.mkdir() if in_the_way.endswith("/") else place.touch()
    target = item.target if in_the_way.endswith("/") else place / "file.bin"

    with pytest.raises(StorageError, match=r"cannot write .*file.*: .*name another directory"):
        downloader().download([dataclasses.replace(item, target=target)])


def test_a_file_is_no_directory_to_pull_or_rescue_into(store):
    (store.directory / "taken").touch()

    for command in ("pull", "rescue"):
        done = store.run(command, "bold-crab-1", "taken")

        assert done.returncode == 2 and "'taken' is a file" in done.stderr


def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path):
    class Bucket:
        """What a listing with such a name is; fake-gcs-server itself refuses it."""

        bucket = "b"

        def in_bucket(self, _):
            return self

        def read_json(self, _):
            return None

        def uri(self, name):
            return f"gs://b/{name}"

        def list(self, folder):
            yield ObjectInfo(f"{folder}a/../../evil", 1, "", None, "1")

    with pytest.raises(StorageError, match="leads out of"):
        results(Bucket(), RunPaths("mlflow-gce", "ab"), "gs://b/e/ab/artifacts", tmp_path)
