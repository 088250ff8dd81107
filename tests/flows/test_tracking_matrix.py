"""Stores times outages: whatever goes away and comes back, the run is as if nothing had.

Afterwards everything that MLflow's client tells of the run - parameters, histories with timestamps
and steps, tags, inputs, outputs, logged models, child runs, status, files - is held against an
undisturbed run, field by field. When things went away is decided by the trainer's step: it waits
at some until it is let through, so the cells do not depend on how fast the machine is.
"""

import fcntl
import http.server
import json
import os
import signal
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import PROJECTS, environment, wait_until
from journals import export
from mlflow.tracking import MlflowClient
from stores import (
    Door,
    File,
    address_of_this_machine,
    mlflow_server,
    postgres,
    postgres_binaries,
)

from gce_backend.emulator import Fault

TRACKED = PROJECTS / "tracked"
# Stands for ten minutes: longer than any single try of the agent's or the client's pauses between
# two (5 s and 1 s), which is what an outage has to outlast.
BUCKET_AWAY_SECONDS = 12


class Gate:
    """Where the trainer asks whether it may go on."""

    def __init__(self):
        self._arrived = {}
        self._opened = {}
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                step = int(self.path[1:])
                gate._event(gate._arrived, step).set()
                answer = 200 if gate._event(gate._opened, step).wait(240) else 503
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait_for_trainer(self, step):
        assert self._event(self._arrived, step).wait(200), f"the trainer did not reach step {step}"

    def open(self, *steps):
        for step in steps:
            self._event(self._opened, step).set()

    def stop(self):
        self.open(1, 4, 8, 12)
        self._server.shutdown()
        self._server.server_close()

    def _event(self, events, step):
        return events.setdefault(step, threading.Event())


class Cell:
    """One run on one store."""

    def __init__(self, cloud, store, gate, words):
        self.cloud, self.store, self.gate = cloud, store, gate
        self.client = MlflowClient(store.uri)
        self.experiment = f"e-{uuid.uuid4().hex[:8]}"
        location = f"gs://{cloud.bucket}/mlflow-gce/experiments/{self.experiment}"
        self.experiment_id = self.client.create_experiment(self.experiment, location)
        self._words = words

    def submit(self):
        words = ["-P", f"gate={self.gate.port}", "-P", "gce.system_metrics=0", *self._words]
        words += ["--run-name", "a name", "--experiment-name", self.experiment]
        following = self.cloud.start_run(TRACKED, *words, MLFLOW_TRACKING_URI=self.store.uri)
        following.wait_for("created", seconds=120)
        return following

    def attach(self):
        return self.cloud.start(
            "mlflow-gce", "attach", self.run_id, "--tracking-uri", self.store.uri
        )

    def sync(self):
        words = ["sync", self.run_id, "--tracking-uri", self.store.uri]
        code, output = self.cloud.mlflow_gce(*words, seconds=200)
        assert code == 0, output

    @property
    def run_id(self):
        runs = self.client.search_runs([self.experiment_id], "tags.`gce.run` LIKE 'gs://%'")
        (run,) = runs
        return run.info.run_id

    def wait_for_deletion(self):
        wait_until(lambda: self.cloud.emulator.instances() == [], 200, "the deletion")

    def wait_for_segment_after(self, count):
        """The agent has brought something more to the bucket."""
        wait_until(lambda: self.segments() > count, 60, "another segment")

    def segments(self):
        return sum("/journal/" in name for name in self.cloud.objects("mlflow-gce/runs/"))

    def export(self):
        """What MLflow tells of the run; what differs between any two runs has one name."""
        run_id = self.run_id
        with environment(self.cloud.environ):
            exported = export(self.store.uri, run_id)
        main = exported["main"]
        for run in (main, *exported["children"].values()):
            info = run["info"]
            assert info["end_time"] >= info["start_time"] > 0
            info["start_time"] = info["end_time"] = "aside"
            run["tags"] = {k: v for k, v in run["tags"].items() if "source.git" not in k}
        ours = ("gce.", "gate")
        for one in (main, *exported["models"].values()):  # MLflow gives a model its run's
            one["params"] = {k: v for k, v in one["params"].items() if not k.startswith(ours)}
        for part in ("metrics", "latest"):
            main[part] = {k: v for k, v in main[part].items() if not k.startswith("gce/")}
        exported["files"] = self._files(run_id)
        text = json.dumps(exported, sort_keys=True)
        for name in (run_id, self.experiment, self.cloud.bucket):
            text = text.replace(name, "-")
        text = text.replace(f'"experiment_id": "{self.experiment_id}"', '"experiment_id": "-"')
        return json.loads(text)

    def _files(self, run_id):
        """Names of the artifacts, each under what it belongs to."""
        places = {run.info.artifact_uri: "main" for run in [self.client.get_run(run_id)]}
        for run in self.client.search_runs([self.experiment_id]):
            places.setdefault(run.info.artifact_uri, run.info.run_name)
        for model in self.client.search_logged_models([self.experiment_id]):
            places[model.artifact_location] = "model"
        root = f"gs://{self.cloud.bucket}/"
        found = []
        for name in self.cloud.objects(f"mlflow-gce/experiments/{self.experiment}/"):
            place = next((p for p in places if f"{root}{name}".startswith(f"{p}/")), None)
            label = places[place] if place else "nobody's"
            found.append(f"{label}: {f'{root}{name}'.removeprefix(place or '')}")
        return sorted(name for name in found if not name.endswith("/git.diff"))


# ---------------------------------------------------------------------- what happens


def undisturbed(cell):
    following = cell.submit()
    cell.gate.open(1, 4, 8, 12)
    assert following.end(200) == 0, following.text


def down_for_the_middle_third(cell):
    following = cell.submit()
    cell.gate.open(1)
    cell.gate.wait_for_trainer(4)
    before = cell.segments()
    cell.store.down()
    cell.gate.open(4)
    cell.gate.wait_for_trainer(8)
    cell.wait_for_segment_after(before)
    time.sleep(2)  # whoever applies meets the outage
    cell.store.up()
    cell.gate.open(8, 12)
    assert following.end(200) == 0, following.text


def down_from_the_start_until_after_the_delete(cell):
    following = cell.submit()
    cell.gate.wait_for_trainer(1)
    cell.store.down()
    cell.gate.open(1, 4, 8, 12)
    cell.wait_for_deletion()
    cell.store.up()
    assert following.end(200) == 0, following.text


def down_from_the_last_epoch_until_after_the_delete(cell):
    following = cell.submit()
    cell.gate.open(1, 4, 8)
    cell.gate.wait_for_trainer(12)
    cell.store.down()
    cell.gate.open(12)
    cell.wait_for_deletion()
    cell.store.up()
    assert following.end(200) == 0, following.text


def bucket_refuses_for_a_while(cell):
    following = cell.submit()
    cell.gate.open(1)
    cell.gate.wait_for_trainer(4)
    cell.cloud.emulator.inject(
        Fault("unavailable", "storage.*", f"{cell.cloud.bucket}*", times=None)
    )
    cell.gate.open(4)
    cell.gate.wait_for_trainer(8)
    time.sleep(BUCKET_AWAY_SECONDS)
    cell.cloud.emulator.clear_faults()
    cell.gate.open(8, 12)
    assert following.end(200) == 0, following.text


def client_killed_right_after_submit(cell):
    following = cell.submit()
    following.send(signal.SIGKILL)
    following.end()
    cell.gate.open(1, 4, 8, 12)
    cell.wait_for_deletion()
    cell.sync()


def client_gone_and_back_twice(cell):
    following = cell.submit()
    cell.gate.open(1)
    for step in (4, 8):
        cell.gate.wait_for_trainer(step)
        following.send(signal.SIGKILL)
        following.end()
        cell.gate.open(step)
        following = cell.attach()
        following.wait_for(f"step {step} of", seconds=120)
    cell.gate.open(12)
    assert following.end(200) == 0, following.text


def agent_killed_and_started_again(cell):
    following = cell.submit()
    cell.gate.open(1)
    cell.gate.wait_for_trainer(4)
    (agent,) = agents_of(cell.run_id)
    os.kill(agent, signal.SIGKILL)
    cell.gate.open(4, 8, 12)
    assert following.end(200) == 0, following.text


OUTAGES = [
    undisturbed,
    down_for_the_middle_third,
    down_from_the_start_until_after_the_delete,
    down_from_the_last_epoch_until_after_the_delete,
    bucket_refuses_for_a_while,
    client_killed_right_after_submit,
    client_gone_and_back_twice,
    agent_killed_and_started_again,
]


def agents_of(run_id):
    """Process ids of the run's agent."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else []
            ours = any(word.endswith(b"/agent.pyz") for word in words[:4])
            if ours and run_id.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# ---------------------------------------------------------------------- where it happens


@pytest.fixture(scope="module")
def servers(tmp_path_factory, empty_store):
    """Servers by name, each started when it is first asked for."""
    with ExitStack() as stack:
        running = {}

        def server(kind):
            if kind not in running:
                if kind == "postgresql":
                    uri = stack.enter_context(postgres())
                else:
                    file = tmp_path_factory.mktemp("server") / "server.db"
                    file.write_bytes(empty_store.read_bytes())
                    uri = f"sqlite:///{file}"
                directory = tmp_path_factory.mktemp("server")
                running[kind] = stack.enter_context(mlflow_server(directory, uri))
            return running[kind]

        yield server


#: name -> words for the command line.
STORES = {
    "sqlite file": [],
    "server on loopback": [],
    "postgresql, remote, client applies": ["-P", "gce.tracking.forward=never"],
    "postgresql, remote, instance applies": [],
}


@pytest.fixture
def open_store(cloud, servers):
    doors = []

    def make(name):
        if name == "sqlite file":
            return File(cloud.directory / "mlflow.db")
        kind = "postgresql" if name.startswith("postgresql") else "sqlite"
        if kind == "postgresql" and postgres_binaries() is None:
            pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        address = "127.0.0.1" if kind == "sqlite" else address_of_this_machine()
        doors.append(Door(servers(kind), address))
        return doors[-1]

    yield make
    for door in doors:
        door.down()


@pytest.fixture
def gates():
    made = []

    def make():
        made.append(Gate())
        return made[-1]

    yield make
    for gate in made:
        gate.stop()


@pytest.fixture
def truth(cloud, gates, tmp_path_factory, worker_id):
    """The undisturbed run, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    file = (base if worker_id == "master" else base.parent) / "undisturbed.json"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            cell = Cell(cloud, File(cloud.directory / "mlflow.db"), gates(), [])
            undisturbed(cell)
            file.write_text(json.dumps(cell.export()))
        return json.loads(file.read_text())


@pytest.mark.timeout(600)  # its own waits end before
@pytest.mark.matrix(cells=2)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.__name__)
def test_whatever_goes_away_the_run_is_as_if_nothing_had(
    cloud, open_store, gates, truth, store, outage
):
    cell = Cell(cloud, open_store(store), gates(), STORES[store])

    outage(cell)

    exported = cell.export()
    assert exported == truth
    assert exported["main"]["info"]["status"] == "FINISHED"
    assert len(exported["main"]["metrics"]["loss"]) == 12
    assert exported["models"]["model"]["status"] == "READY"
    assert len(exported["children"]) == 2
    assert not [name for name in exported["files"] if name.startswith("nobody's")]
