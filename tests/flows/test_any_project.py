"""Any MLproject runs: without conf/, from elsewhere, from git, with any entry point and value."""

import json
import shutil
import subprocess

import pytest
from conftest import PROJECTS, wait_until

from gce_backend.emulator.ports import free_port

pytestmark = pytest.mark.rotating(one_in=2)

PLAIN = PROJECTS / "plain"
NASTY = "a 'b' \"c\" $HOME `id`\n{x} \\"


def git(directory, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True)


def test_a_project_without_conf_in_another_directory(cloud):
    code, output = cloud.mlflow_run(PLAIN, "--run-name", "a name")

    assert code == 0, output
    run = cloud.only_run()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a name")
    history = cloud.client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.data.params == {
        "machine": "n1-standard-2",
        "steps": "3",
        "pause": "0",
        "exit_code": "0",
    }
    assert "step 3 of 3" in output
    assert "instances left: 0" in output


def test_another_entry_point_gets_every_value_exactly_as_given(cloud):
    code, output = cloud.mlflow_run(
        PLAIN, "-e", "arguments", "-P", f"text={NASTY}", "-P", f"extra={NASTY}"
    )

    assert code == 0, output
    run = cloud.only_run()
    arguments = cloud.read(f"{run.info.artifact_uri.split('/', 3)[3]}/arguments.json")
    assert json.loads(arguments) == [NASTY, "--extra", NASTY]
    assert run.data.params["text"] == NASTY
    assert run.data.tags["mlflow.project.entryPoint"] == "arguments"


@pytest.fixture
def git_server(tmp_path):
    """git's own daemon, serving one repository with a branch that its main has not got."""
    repository = tmp_path / "served" / "plain"
    shutil.copytree(PLAIN, repository)
    git(repository, "init", "-q", "-b", "main")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "one")
    git(repository, "checkout", "-q", "-b", "feature")
    (repository / "arguments.py").write_text(
        "import mlflow\nwith mlflow.start_run():\n    mlflow.log_param('from', 'feature')\n"
    )
    git(repository, "commit", "-q", "-a", "-m", "two")
    git(repository, "checkout", "-q", "main")
    port = free_port()
    served = [f"--base-path={repository.parent}", str(repository.parent)]
    daemon = subprocess.Popen(
        ["git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}", *served]
    )
    uri = f"git://127.0.0.1:{port}/plain"
    try:
        wait_until(lambda: subprocess.run(["git", "ls-remote", uri]).returncode == 0, seconds=30)
        yield uri
    finally:
        # The daemon's children are sessions of single requests; none is open any more.
        daemon.terminate()
        daemon.wait()


def test_a_git_uri_with_a_version(cloud, git_server):
    code, output = cloud.mlflow_run(git_server, "-v", "feature", "-e", "arguments")

    assert code == 0, output
    run = cloud.only_run()
    assert run.data.params["from"] == "feature"
    assert run.data.tags["mlflow.source.name"] == git_server
    assert run.data.tags["mlflow.source.git.branch"] == "feature"


def test_a_version_of_a_local_repository_leaves_the_working_tree_alone(cloud, tmp_path):
    repository = tmp_path / "mine"
    shutil.copytree(PLAIN, repository)
    git(repository, "init", "-q", "-b", "main")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "one")
    (repository / "main.py").write_text("raise SystemExit('the working tree must not run')\n")

    code, output = cloud.mlflow_run(repository, "-v", "main")

    assert code == 0, output
    assert "must not run" in (repository / "main.py").read_text()


def test_the_working_tree_runs_as_it_is_with_what_git_would_ship(cloud, tmp_path):
    repository = tmp_path / "mine"
    shutil.copytree(PLAIN, repository)
    (repository / ".gitignore").write_text("ignored\n")
    git(repository, "init", "-q", "-b", "main")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "one")
    (repository / "ignored").write_text("x")
    (repository / ".env").write_text("TOKEN=secret")
    (repository / "new file.txt").write_text("x")
    (repository / "arguments.py").write_text(
        "import os, mlflow\n"
        "with mlflow.start_run():\n"
        "    mlflow.log_dict(sorted(os.listdir()), 'files.json')\n"
    )

    code, output = cloud.mlflow_run(repository, "-e", "arguments")

    assert code == 0, output
    assert ".env looks like a secret" in output
    run = cloud.only_run()
    files = json.loads(cloud.read(f"{run.info.artifact_uri.split('/', 3)[3]}/files.json"))
    assert {"MLproject", "arguments.py", "main.py", "new file.txt", ".gitignore"} <= set(files)
    assert not {".git", "ignored", ".env"} & set(files)
    assert run.data.tags["gce.git.dirty"] == "true"
