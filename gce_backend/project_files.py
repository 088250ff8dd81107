"""Which files of a project directory go to the instance: what git would ship, minus ignores.

Not here: the archive they go into (:mod:`gce_backend.bundle`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from gce_backend.errors import ProjectError

GIT_SECONDS = 120  # `git ls-files` over a network file system, at worst

# Never meant for an instance, wherever nobody has asked git to track them. mlflow.db and mlruns/
# above all: `mlflow run` writes them into the project, so every run would be a new archive.
DEFAULT_EXCLUDES = (
    ".git",
    "__pycache__/",
    "*.py[co]",
    ".venv/",
    "venv/",
    "mlruns/",
    "mlartifacts/",
    "mlflow.db",
    "mlflow.db-*",
    ".ipynb_checkpoints/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".tox/",
    "node_modules/",
    ".gce-emulator/",
    "multirun/",  # Hydra's: what earlier sweeps and runs wrote is no part of the project
    "outputs/",
    ".DS_Store",
)

# Compared in lower case with every component of an untracked file's path.
SECRET_NAMES = (
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    "_netrc",
    ".pypirc",
    ".git-credentials",
    "credentials.json",
    "application_default_credentials.json",
    "*service-account*.json",
    "*service_account*.json",
)

# A git hook or `git rebase --exec` that starts us points git at its own repository.
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


@dataclass(frozen=True)
class ProjectFiles:
    """Paths relative to the project directory, ``/`` between components, sorted by their bytes.

    ``excluded_secrets`` are untracked files (directories end in ``/``) left out by their names.
    """

    paths: tuple[str, ...]
    excluded_secrets: tuple[str, ...]


def list_project_files(project_dir: Path) -> ProjectFiles:
    """List what is shipped of ``project_dir``: files and symbolic links, no directories.

    In a git work tree: the tracked files that exist, and the untracked ones that git does not
    ignore, submodules and embedded repositories included. Elsewhere: all files that no
    ``.gitignore`` excludes. Of those nobody tracks, `DEFAULT_EXCLUDES`, virtual environments and
    `SECRET_NAMES` are left out; then, of all, what ``.gcloudignore`` excludes; always ``.git``.

    Raises:
        ProjectError: not a directory, git does not answer, or an ignore file cannot be read.
    """
    if not project_dir.is_dir():
        raise ProjectError(f"the project directory {str(project_dir)!r} is not a directory")
    if _git_ships(project_dir):
        tracked, untracked = _list_by_git(project_dir)
    else:
        tracked, untracked = set(), set(_walk(project_dir))
    untracked = _without_defaults(untracked - tracked)
    gcloudignore = _read_gcloudignore(project_dir)
    kept = {
        path
        for path in tracked | untracked
        if not gcloudignore.match_file(path)
        and ".git" not in path.split("/")
        and _is_shippable(project_dir / path)
    }
    kept = _without_paths_through_links(project_dir, kept)
    secrets = {path: secret for path in kept & untracked if (secret := secret_part(path))}
    return ProjectFiles(
        paths=tuple(sorted(kept - secrets.keys(), key=os.fsencode)),
        excluded_secrets=tuple(sorted(set(secrets.values()))),
    )


def secret_part(path: str) -> str | None:
    """The part of ``path`` that ends with a component named like a secret, or None."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if any(fnmatchcase(part.lower(), pattern) for pattern in SECRET_NAMES):
            whole = "/".join(parts[: index + 1])
            return whole if index == len(parts) - 1 else whole + "/"
    return None


def _is_shippable(path: Path) -> bool:
    """A regular file or a symbolic link; a deleted tracked file, a socket or a pipe is neither."""
    return path.is_symlink() or path.is_file()


def _without_paths_through_links(project_dir: Path, paths: set[str]) -> set[str]:
    """Without tracked files whose directory has been replaced by a link: the link goes instead."""
    links = {path for path in paths if (project_dir / path).is_symlink()}
    if not links:
        return paths
    return {p for p in paths if not any(str(q) in links for q in PurePosixPath(p).parents)}


# ---------------------------------------------------------------------- by git


def _git_ships(directory: Path) -> bool:
    """True in a git work tree that does not ignore the directory itself."""
    try:
        inside = _git(directory, "rev-parse", "--is-inside-work-tree")
    except FileNotFoundError:
        return False  # no git on this machine
    if inside.returncode != 0 or inside.stdout.strip() != b"true":
        return False
    return _git(directory, "check-ignore", "-q", ".").returncode != 0


def _list_by_git(directory: Path, base: str = "") -> tuple[set[str], set[str]]:
    """(tracked, untracked) paths below ``directory``, relative to the top of the project.

    ``--recurse-submodules`` knows no ``--others``, so nested repositories are entered here.
    """
    tracked: set[str] = set()
    nested: set[str] = set()
    for entry in _git_names(directory, "-s"):
        mode_and_stage, _, name = entry.partition("\t")
        (nested if mode_and_stage.startswith("160000 ") else tracked).add(name)
    others = set(_git_names(directory, "-o", "--exclude-standard"))
    nested |= {name.rstrip("/") for name in others if name.endswith("/")}
    untracked = {base + name for name in others if not name.endswith("/")}
    tracked = {base + name for name in tracked}
    for name in nested:
        repository = directory / name
        if (repository / ".git").exists():  # absent in a submodule that was not checked out
            inner_tracked, inner_untracked = _list_by_git(repository, f"{base}{name}/")
            tracked |= inner_tracked
            untracked |= inner_untracked
    return tracked, untracked


def _git_names(directory: Path, *options: str) -> list[str]:
    result = _git(directory, "ls-files", "-z", *options)
    if result.returncode != 0:
        reply = result.stderr.decode(errors="replace").strip()
        raise ProjectError(f"cannot list the files of {str(directory)!r}: git says: {reply}")
    return [os.fsdecode(name) for name in result.stdout.split(b"\0") if name]


def _git(directory: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {k: v for k, v in os.environ.items() if k not in _GIT_VARIABLES}
    # safe.directory: a mounted workspace (containers, Codespaces) often belongs to another user;
    # listing names is harmless once fsmonitor, a program the repository may name, is off.
    command = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *arguments]
    try:
        return subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, timeout=GIT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ProjectError(
            f"git did not list the files of {str(directory)!r} within {GIT_SECONDS} s; "
            "nothing was started"
        ) from error


# ---------------------------------------------------------------------- without git


def _walk(top: Path) -> Iterator[str]:
    """All files that no .gitignore on their way excludes, without entering excluded directories."""
    defaults = ("", GitIgnoreSpec.from_lines(DEFAULT_EXCLUDES))
    stack: list[tuple[str, tuple[tuple[str, GitIgnoreSpec], ...]]] = [("", (defaults,))]
    while stack:
        base, specs = stack.pop()
        directory = top / base
        specs = (*specs, (base, _read_ignore_file(directory / ".gitignore")))
        for entry in _scan(directory):
            path = base + entry.name
            is_directory = entry.is_dir(follow_symlinks=False)
            if _is_ignored(path + "/" if is_directory else path, specs):
                continue
            if is_directory:
                stack.append((path + "/", specs))
            else:
                yield path


def _scan(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError as error:
        raise ProjectError(f"cannot read the directory {str(directory)!r}: {error}") from error


def _is_ignored(path: str, specs: Iterable[tuple[str, GitIgnoreSpec]]) -> bool:
    """What git decides: the last word of the deepest .gitignore that has one."""
    ignored = False
    for base, spec in specs:
        verdict = spec.check_file(path[len(base) :]).include
        if verdict is not None:
            ignored = verdict
    return ignored


# ---------------------------------------------------------------------- ignore files


def _without_defaults(untracked: set[str]) -> set[str]:
    spec = GitIgnoreSpec.from_lines(DEFAULT_EXCLUDES)
    environments = {
        str(PurePosixPath(path).parent) + "/"
        for path in untracked
        if path.endswith("/pyvenv.cfg")  # a virtual environment, whatever its name
    }
    return {
        path
        for path in untracked
        if not spec.match_file(path) and not path.startswith(tuple(environments))
    }


def _read_ignore_file(file: Path) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines(_lines(file))


def _read_gcloudignore(project_dir: Path) -> GitIgnoreSpec:
    """The project's .gcloudignore; ``#!include:NAME`` puts another file's lines in its place."""
    lines: list[str] = []
    for line in _lines(project_dir / ".gcloudignore"):
        if line.startswith("#!include:"):
            lines += _lines(project_dir / line.removeprefix("#!include:").strip())
        else:
            lines.append(line)
    return GitIgnoreSpec.from_lines(lines)


def _lines(file: Path) -> list[str]:
    try:
        return os.fsdecode(file.read_bytes()).splitlines()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return []
    except OSError as error:
        raise ProjectError(f"cannot read {str(file)!r}: {error}") from error
