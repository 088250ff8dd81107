"""What a project ships, and that the same tree is the same archive."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from gce_backend.bundle import MTIME, Bundle, make_bundle, size_warning
from gce_backend.errors import ProjectError
from gce_backend.project_files import secret_part


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    write(directory, "MLproject", "name: p")
    write(directory, "train.py", "print()")
    return directory


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundle.tar.gz"


def write(directory: Path, name: str, text: str = "x") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def git(directory: Path, *arguments: str) -> None:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    options += ["-c", "protocol.file.allow=always"]
    subprocess.run(
        ["git", *options, *arguments], cwd=directory, check=True, capture_output=True, timeout=60
    )


def commit_all(directory: Path) -> None:
    if not (directory / ".git").exists():
        git(directory, "init", "-q")
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", "x")


def names(bundle: Bundle) -> list[str]:
    with tarfile.open(bundle.path) as tar:
        members = tar.getnames()
    assert members == [path for path, _ in bundle.files]
    return members


# ---------------------------------------------------------------------- which files


def test_git_decides_what_is_shipped(project: Path, out: Path) -> None:
    write(project, ".gitignore", "ignored\n*.log\n!kept.log\n")
    write(project, "gone.py")
    write(project, "pkg/mod.py")
    commit_all(project)
    (project / "gone.py").unlink()
    for name in ("ignored/x", "a.log", "kept.log", "untracked.txt", "pkg/.gitignore"):
        write(project, name)

    assert names(make_bundle(project, out)) == [
        ".gitignore",
        "MLproject",
        "kept.log",
        "pkg/.gitignore",
        "pkg/mod.py",
        "train.py",
        "untracked.txt",
    ]


def test_only_the_project_directory_of_a_larger_repository_is_shipped(
    tmp_path: Path, project: Path, out: Path
) -> None:
    write(tmp_path, "outside.py")
    write(project, "sub/inside.py")
    commit_all(tmp_path)

    assert names(make_bundle(project / "sub", out)) == ["inside.py"]
    assert "train.py" in names(make_bundle(project, out))


def test_without_git_the_ignore_files_decide(project: Path, out: Path) -> None:
    write(project, ".gitignore", "*.log\ndata/*\n!data/keep\n/top\n")
    for name in ("a.log", "data/x", "data/keep", "top", "sub/top", "sub/b.log", "sub/c.tmp"):
        write(project, name)
    write(project, "sub/.gitignore", "!b.log\n*.tmp\n")
    for name in ("mlflow.db", "mlruns/0/meta.yaml", ".venv/bin/python", "a/__pycache__/a.pyc"):
        write(project, name)
    write(project, "my-env/pyvenv.cfg")
    write(project, "my-env/lib/x.py")

    assert names(make_bundle(project, out)) == [
        ".gitignore",
        "MLproject",
        "data/keep",
        "sub/.gitignore",
        "sub/b.log",
        "sub/top",
        "train.py",
    ]


def test_a_directory_that_its_repository_ignores_is_shipped_as_if_without_git(
    tmp_path: Path, project: Path, out: Path
) -> None:
    write(tmp_path, ".gitignore", "project/\n")
    write(tmp_path, "other.py")
    commit_all(tmp_path)

    assert names(make_bundle(project, out)) == ["MLproject", "train.py"]


def test_the_tracking_store_is_not_shipped_because_nobody_ignores_it(
    project: Path, out: Path
) -> None:
    commit_all(project)
    before = make_bundle(project, out).sha256
    for name in ("mlflow.db", "mlflow.db-wal", "mlruns/1/x", "__pycache__/t.pyc"):
        write(project, name)

    assert make_bundle(project, out).sha256 == before


def test_gcloudignore_excludes_more(project: Path, out: Path) -> None:
    write(project, ".gcloudignore", "#!include:.gitignore\n# comment\nbig/\n!big.txt\n*.txt\n")
    write(project, ".gitignore", "tracked-yet-ignored\n")
    for name in ("big/a", "big.txt", "a.txt", "tracked-yet-ignored", "kept"):
        write(project, name)
    git(project, "init", "-q")
    git(project, "add", "-f", ".")

    assert names(make_bundle(project, out)) == [
        ".gcloudignore",
        ".gitignore",
        "MLproject",
        "kept",
        "train.py",
    ]


def test_gcloudignore_cannot_bring_git_along(project: Path, out: Path) -> None:
    commit_all(project)
    write(project, ".gcloudignore", "!.git\n!.git/**\n")

    assert not [name for name in names(make_bundle(project, out)) if name.startswith(".git/")]


def test_submodules_and_embedded_repositories_are_shipped(
    tmp_path: Path, project: Path, out: Path
) -> None:
    library = tmp_path / "library"
    write(library, "lib.py")
    commit_all(library)
    commit_all(project)
    git(project, "submodule", "add", "-q", str(library), "deps/lib")
    commit_all(project)
    write(project, "deps/lib/untracked.py")
    write(project, "embedded/e.py")
    commit_all(project / "embedded")

    assert names(make_bundle(project, out)) == [
        ".gitmodules",
        "MLproject",
        "deps/lib/lib.py",
        "deps/lib/untracked.py",
        "embedded/e.py",
        "train.py",
    ]


def test_a_submodule_that_was_not_checked_out_is_just_absent(
    tmp_path: Path, project: Path, out: Path
) -> None:
    library = tmp_path / "library"
    write(library, "lib.py")
    commit_all(library)
    commit_all(project)
    git(project, "submodule", "add", "-q", str(library), "lib")
    commit_all(project)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project), str(clone))

    assert names(make_bundle(clone, out)) == [".gitmodules", "MLproject", "train.py"]


def test_untracked_secrets_stay_here_and_are_reported(project: Path, out: Path) -> None:
    write(project, "tracked.pem")
    commit_all(project)
    for name in (".env", "deploy/id_rsa", ".env.d/x", ".env.d/y", "my-Service-Account-1.JSON"):
        write(project, name)
    write(project, "environment.py")

    bundle = make_bundle(project, out)

    assert names(bundle) == ["MLproject", "environment.py", "tracked.pem", "train.py"]
    assert bundle.excluded_secrets == (
        ".env",
        ".env.d/",
        "deploy/id_rsa",
        "my-Service-Account-1.JSON",
    )


@pytest.mark.parametrize(
    "name",
    [".env.local", "a/key.PEM", "id_ed25519.pub", "tls.key", ".netrc", "x/credentials.json"],
)
def test_names_of_secrets(name: str) -> None:
    assert secret_part(name) == name


@pytest.mark.parametrize("name", ["env.py", "keys.json", "monkey", "pem", "tokenizer.json"])
def test_names_of_no_secrets(name: str) -> None:
    assert secret_part(name) is None


@pytest.mark.parametrize("with_git", [True, False])
def test_names_are_shipped_as_they_are(
    project: Path, out: Path, weird_name: str, with_git: bool
) -> None:
    write(project, f"dir {weird_name}/{weird_name}", "content")
    if with_git:
        commit_all(project)
        write(project, weird_name)

    bundle = make_bundle(project, out)

    assert f"dir {weird_name}/{weird_name}" in names(bundle)
    assert (weird_name in names(bundle)) is with_git
    with tarfile.open(out) as tar:
        assert tar.extractfile(f"dir {weird_name}/{weird_name}").read() == b"content"  # type: ignore[union-attr]


def test_a_name_that_is_no_utf8_survives(project: Path, out: Path) -> None:
    name = b"caf\xe9"
    (project / os.fsdecode(name)).write_bytes(b"x")

    assert os.fsdecode(name) in names(make_bundle(project, out))


def test_a_git_hooks_environment_does_not_mislead(
    tmp_path: Path, project: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    write(other, "other.py")
    commit_all(other)
    commit_all(project)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))

    assert names(make_bundle(project, out)) == ["MLproject", "train.py"]


# ---------------------------------------------------------------------- links


def test_links_inside_the_project_stay_links(project: Path, out: Path, tmp_path: Path) -> None:
    write(project, "data/real.txt", "real")
    (project / "data/link.txt").symlink_to("real.txt")
    (project / "absolute").symlink_to(project / "data")
    (project / "dangling").symlink_to("later")
    commit_all(project)

    make_bundle(project, out)

    with tarfile.open(out) as tar:
        links = {m.name: m.linkname for m in tar.getmembers() if m.issym()}
        tar.extractall(tmp_path / "there", filter="data")
    assert links == {"absolute": "data", "dangling": "later", "data/link.txt": "real.txt"}
    assert (tmp_path / "there/absolute/link.txt").read_text() == "real"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("link", "../outside"),
        ("link", "/etc"),
        ("link", "sub/../../outside"),
        ("link", "../back"),  # out, and in again
        ("sub/link", "up/../x"),  # sub/up is the project itself
    ],
)
def test_links_that_leave_the_project_are_named(
    project: Path, out: Path, tmp_path: Path, name: str, target: str
) -> None:
    write(tmp_path, "outside")
    (tmp_path / "back").symlink_to(project / "train.py")
    write(project, "sub/x")
    (project / "sub/up").symlink_to("..")
    (project / name).symlink_to(target)

    with pytest.raises(ProjectError, match="lead out of the project") as error:
        make_bundle(project, out)

    assert f"nothing: {name!r} -> {target!r}. Replace" in str(error.value)
    assert ".gcloudignore" in str(error.value)
    assert not out.exists()


def test_a_link_out_of_the_project_may_be_ignored(project: Path, out: Path) -> None:
    (project / "data").symlink_to("/etc")
    write(project, ".gcloudignore", "/data\n")

    assert names(make_bundle(project, out)) == [".gcloudignore", "MLproject", "train.py"]


def test_a_directory_replaced_by_a_link_is_shipped_as_the_link(project: Path, out: Path) -> None:
    write(project, "old/f")
    write(project, "new/f")
    commit_all(project)
    (project / "old/f").unlink()
    (project / "old").rmdir()
    (project / "old").symlink_to("new")

    assert names(make_bundle(project, out)) == ["MLproject", "new/f", "old", "train.py"]


def test_what_is_no_file_is_skipped(project: Path, out: Path) -> None:
    os.mkfifo(project / "pipe")
    (project / "empty").mkdir()

    assert names(make_bundle(project, out)) == ["MLproject", "train.py"]


# ---------------------------------------------------------------------- the archive


def test_the_same_tree_is_the_same_archive(tmp_path: Path, project: Path, out: Path) -> None:
    for i in range(50):
        write(project, f"d{i % 7}/f{i}", str(i))
    (project / "train.py").chmod(0o750)
    first = make_bundle(project, out)
    copy = tmp_path / "elsewhere" / "copy"
    for path, _ in reversed(first.files):
        write(copy, path, (project / path).read_text())
        os.utime(copy / path, (time.time() - 9999, 12345))
    (copy / "train.py").chmod(0o700)

    second = make_bundle(copy, tmp_path / "other-name.tgz")

    assert second.sha256 == first.sha256
    assert second.path.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("change", ["content", "name", "mode"])
def test_a_change_is_another_archive(project: Path, out: Path, change: str) -> None:
    before = make_bundle(project, out).sha256
    if change == "content":
        write(project, "train.py", "printf")
    elif change == "name":
        (project / "train.py").rename(project / "train2.py")
    else:
        (project / "train.py").chmod(0o755)

    assert make_bundle(project, out).sha256 != before


def test_members_carry_nothing_of_this_machine(project: Path, out: Path) -> None:
    (project / "train.py").chmod(0o711)
    bundle = make_bundle(project, out)

    with tarfile.open(out) as tar:
        members = [(m.name, m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime) for m in tar]
    assert members == [
        ("MLproject", 0o644, 0, 0, "", "", MTIME),
        ("train.py", 0o755, 0, 0, "", "", MTIME),
    ]
    assert out.read_bytes()[3:8] == b"\0" * 5  # gzip: no flags (no name), no time
    assert bundle.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert bundle.size == out.stat().st_size
    assert bundle.files == (("MLproject", 7), ("train.py", 7))


def test_the_archive_does_not_contain_itself(project: Path) -> None:
    first = make_bundle(project, project / "bundle.tar.gz")
    second = make_bundle(project, project / "bundle.tar.gz")

    assert names(second) == ["MLproject", "train.py"]
    assert second.sha256 == first.sha256


def test_memory_does_not_grow_with_the_files(project: Path, out: Path) -> None:
    with (project / "big").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    tracemalloc.start()
    bundle = make_bundle(project, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert bundle.largest[0] == ("big", 64 * 1024 * 1024)
    assert peak < 8 * 1024 * 1024
    with gzip.open(out) as unzipped:
        assert unzipped.read(9) == b"MLproject"


def test_a_failure_leaves_no_archive(project: Path, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    directory.mkdir()
    (project / "train.py").unlink()
    os.mkfifo(project / "unused")
    (project / "train.py").symlink_to("/etc/hostname")

    with pytest.raises(ProjectError):
        make_bundle(project, directory / "b.tar.gz")

    assert list(directory.iterdir()) == []


def test_there_must_be_something_to_ship(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ProjectError, match="nothing to ship"):
        make_bundle(tmp_path / "empty", out)
    with pytest.raises(ProjectError, match="is not a directory"):
        make_bundle(tmp_path / "absent", out)


def test_a_large_archive_is_warned_about_with_its_largest_files(tmp_path: Path) -> None:
    largest = (("data/a.bin", 150_000_000), ("b.bin", 1_250_000))
    bundle = Bundle(tmp_path, "0" * 64, 123_400_000, largest, largest, ())

    assert size_warning(bundle) == (
        "the project's archive is 123.4 MB, uploaded once and downloaded by every instance. "
        "Largest files: data/a.bin (150.0 MB), b.bin (1.2 MB). "
        "Leave files out with a .gcloudignore (same syntax as .gitignore)"
    )
    assert size_warning(Bundle(tmp_path, "0" * 64, 100_000_000, (), (), ())) is None
