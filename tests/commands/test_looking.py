"""How commands begin: with a look around that delays nothing, and tells what the last one found."""

import importlib
import json
import time

import pytest

from gce_backend import last_look
from gce_backend.cli import COMMANDS

#: plan and emulator ask no cloud, init has none yet, reap looks itself; attach and stop first find
#: out which run they take care of.
OTHERS = {"plan", "emulator", "init", "reap", "attach", "stop"}


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - OTHERS))
def test_every_command_that_talks_to_the_cloud_begins_with_the_look(name):
    command = getattr(importlib.import_module(COMMANDS[name][0]), name)

    assert command.callback.__wrapped__.__name__ == name


def test_a_command_deletes_what_is_proven_and_the_next_one_tells_of_what_is_unsynced(store):
    environ = {"MLFLOW_GCE_GLANCE": "", "XDG_STATE_HOME": str(store.directory / "state")}
    proven, kept = store.instance(), store.instance()
    store.ends(proven)
    store.ends(kept, verified=False)
    unsynced = store.store_run()
    store.put(store.paths(unsynced).journal(1), b'{"kind": "log-metric", "at": 1000}\n')

    started = time.monotonic()
    first = store.run("logs", unsynced, **environ)
    taken = time.monotonic() - started
    found = store.directory / "state" / "mlflow-gce" / "unsynced.json"
    end = time.monotonic() + 60
    while not found.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    second = store.run("cost", **environ)

    assert taken < 2 and "mlflow-gce sync" not in first.stderr
    assert store.left() == {kept}
    assert f"Run: mlflow-gce sync {unsynced} (as of 0 min ago)" in second.stderr
    assert store.run("sync", "--all", **environ).returncode == 0
    assert "mlflow-gce sync" not in store.run("cost", **environ).stderr


def test_a_look_makes_no_store(cloud):
    """Opening one that is a file would."""
    environ = {"MLFLOW_GCE_GLANCE": "", "XDG_STATE_HOME": str(cloud.directory / "state")}

    assert cloud.run("ps", **environ).returncode == 0
    assert not (cloud.directory / "mlflow.db").exists()


def test_what_the_last_look_found_is_of_one_store_and_a_day(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    last_look.remember("http://a:5000", "1 run has")

    assert last_look.recall("http://a:5000")[0] == "1 run has"
    assert last_look.recall("http://b:5000") == ("", float("inf"))
    file = tmp_path / "mlflow-gce" / "unsynced.json"
    content = json.loads(file.read_text())
    content["http://a:5000"]["at"] -= 90_000
    file.write_text(json.dumps(content))
    assert last_look.recall("http://a:5000") == ("", float("inf"))
    file.write_text("[]")
    assert last_look.recall("http://a:5000") == ("", float("inf"))
