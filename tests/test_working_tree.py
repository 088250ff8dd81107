"""The diff of a dirty working tree, as it is kept with the run."""

import os
import subprocess

import pytest

from gce_backend import working_tree
from gce_backend.working_tree import diff


@pytest.fixture
def project(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("one\n")
    (tmp_path / ".gitignore").write_text("ignored\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "first")
    return tmp_path


def git(directory, *words):
    done = subprocess.run(["git", "-C", directory, *words], capture_output=True, check=True)
    return done.stdout.decode()


def test_a_clean_tree_and_no_repository_have_no_diff(project, tmp_path_factory):
    assert diff(project, ["train.py"]) == b""
    assert diff(tmp_path_factory.mktemp("elsewhere"), []) == b""


def test_changes_staged_or_not_and_new_files_are_in_it_and_secrets_are_not(project, weird_name):
    (project / "train.py").write_text("two\n")
    (project / "staged.py").write_text("three\n")
    git(project, "add", "staged.py")
    (project / weird_name).write_text("four\n")
    (project / ".env").write_text("TOKEN=five\n")
    (project / "ignored").write_text("six\n")
    before = git(project, "status", "--porcelain")

    found = diff(project, {"train.py", "staged.py", weird_name}).decode()

    added = [line for line in found.splitlines() if line.startswith("+") and line[1:2] != "+"]
    assert sorted(added) == ["+four", "+three", "+two"]
    assert git(project, "status", "--porcelain") == before
    clone = project / "clone"
    git(project, "worktree", "add", "-q", str(clone), "HEAD")
    subprocess.run(["git", "apply", "-"], cwd=clone, input=found.encode(), check=True)
    assert (clone / weird_name).read_text() == "four\n"


def test_a_projects_diff_is_that_of_its_own_directory(project):
    (project / "train.py").write_text("outside\n")
    inner = project / "inner"
    inner.mkdir()
    (inner / "MLproject").write_text("inside\n")

    found = diff(inner, {"MLproject"}).decode()

    assert "+inside" in found
    assert "outside" not in found


def test_a_diff_is_cut_and_says_so(project, monkeypatch):
    monkeypatch.setattr(working_tree, "MAX_BYTES", 100)
    (project / "train.py").write_text("x" * 1000 + os.linesep)

    assert diff(project, []).endswith(b"the bundle in the bucket has the files]\n")
