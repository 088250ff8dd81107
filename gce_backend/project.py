"""An MLflow project: where it comes from, the command its entry point runs, what that needs.

The only module that leans on ``mlflow.projects``' internals (the same since MLflow 2.0). It
differs from MLflow's local backend in four places, each with its reason beside it: a version never
touches the user's working tree, values are checked before anything costs money, ``path``
parameters must make sense on another machine, and Hydra words need no quoting by hand.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from gce_backend.errors import ProjectError
from gce_backend.urls import without_credentials

_URI = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")


@dataclass(frozen=True)
class Source:
    """A project's files on this machine, and where they came from.

    Args:
        directory: the folder with the MLproject file.
        name: what MLflow shows as the run's source; never with credentials in it.
        commit: HEAD of the git repository, None outside of one.
        dirty: the working tree differs from ``commit``.
    """

    directory: Path
    name: str
    commit: str | None = None
    repository: str | None = None
    branch: str | None = None
    dirty: bool = False


@dataclass(frozen=True)
class EntryPoint:
    """What to run.

    Args:
        command: one string for ``bash -c``, every value quoted.
        parameters: as MLflow shows them: declared ones and extra ones, unquoted.
        hydra_words: the Hydra overrides in ``command``; empty for other projects.
    """

    name: str
    command: str
    parameters: dict[str, str]
    hydra_words: tuple[str, ...]


@contextmanager
def open_source(uri: str, version: str | None) -> Iterator[Source]:
    """The project at ``uri``, local or fetched; what was fetched is removed at the end.

    Args:
        uri: a directory, a git or zip URI, each with ``#subdirectory`` or without.
        version: a commit, tag or branch of a git project.

    Raises:
        ProjectError: there is no such project or version.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.projects import utils

    location, subdirectory = utils._parse_subdirectory(uri)
    try:
        with tempfile.TemporaryDirectory(prefix="mlflow-gce-") as temporary:
            if not utils._is_local_uri(location) or utils._is_zip_uri(location):
                _fetch(location, version, temporary)
                root, name = Path(temporary), without_credentials(uri)
            else:
                root = Path(utils._parse_file_uri(location)).resolve()
                name = str(root)
                if version is not None:
                    commit = _export(root, version, Path(temporary))
                    branch = version if _git(root, "branch", "--list", version) else None
                    yield _described(root, Path(temporary), subdirectory, name, commit, branch)
                    return
            yield _described(root, root, subdirectory, name, None, version)
    except MlflowException as error:
        raise ProjectError(f"project {without_credentials(uri)}: {error.message}") from error


def entry_point(source: Source, name: str, parameters: Mapping[str, Any]) -> EntryPoint:
    """The command that entry point ``name`` runs with ``parameters``.

    Undeclared parameters become ``--key value``, as MLflow does it; where the entry point declares
    a parameter ``overrides``, they become further Hydra words in it.

    Raises:
        ProjectError: no such entry point, a parameter is missing or has a value of another type.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.projects.utils import load_project

    values = {key: _text(value) for key, value in parameters.items()}
    if "" in values:
        raise ProjectError(f"parameter '={values['']}' of entry point {name!r} has no name")
    try:
        try:
            project = load_project(str(source.directory))
        except (YAMLError, AttributeError, TypeError, UnicodeDecodeError) as error:
            raise ProjectError(
                f"project {source.name}: its MLproject file cannot be read: "
                f"{' '.join(str(error).split())}"
            ) from error
        declared = _declared(project, source, name)
        for key, parameter in declared.parameters.items():
            if key in values:
                values[key] = _checked(parameter, values[key], source, name)
        known, extra = declared.compute_parameters(values, storage_dir=None)
        shown = {key: shlex.split(value)[0] for key, value in {**known, **extra}.items()}
        is_hydra = "overrides" in declared.parameters
        if is_hydra:
            words = [_hydra_word(key, values.pop(key)) for key in extra]
            given = values.get("overrides", declared.parameters["overrides"].default or "")
            values["overrides"] = " ".join([given, shlex.join(words)]).strip()
        command = declared.compute_command(values, None)
    except MlflowException as error:
        raise ProjectError(f"entry point {name!r} of {source.name}: {error.message}") from error
    except (KeyError, IndexError, ValueError) as error:
        raise ProjectError(
            f"entry point {name!r} of {source.name}: its command names a placeholder that is no "
            f"parameter ({error}); a brace of the shell's is written twice in an MLproject file"
        ) from error
    try:
        hydra_words = tuple(_words_of(command)) if is_hydra else ()
    except ValueError as error:  # shlex's
        raise ProjectError(
            f"entry point {name!r} of {source.name}: {error} in the Hydra words of: {command}. "
            "A quotation mark that is part of a value takes a backslash"
        ) from error
    return EntryPoint(name, command, shown, hydra_words)


def _declared(project: Any, source: Source, name: str) -> Any:
    """MLflow's EntryPoint object, for a name in MLproject or a script in the project."""
    if not project._entry_points and not name.endswith((".py", ".sh")):
        raise ProjectError(
            f"entry point {name!r}: {source.name} has no MLproject file that declares entry "
            "points, so only a script in it can run, as in: -e train.py"
        )
    found = project.get_entry_point(name)
    if found is None or project.docker_env is not None:
        raise ProjectError(
            f"project {source.name} asks for a container or a Databricks job; this backend runs "
            "python_env, conda_env and projects without an environment"
        )
    if name not in (project._entry_points or {}):
        if not (source.directory / name).is_file():
            raise ProjectError(
                f"entry point {name!r}: {source.name} declares "
                f"{sorted(project._entry_points or {}) or 'none'} and has no script of that name"
            )
        if name.endswith(".sh"):
            # MLflow would run it with the shell of whoever submits.
            found.command = f"bash {shlex.quote(name)}"
    return found


def _checked(parameter: Any, value: str, source: Source, entry: str) -> str:
    if parameter.type == "float":
        try:
            float(value)
        except ValueError:
            raise ProjectError(
                f"parameter {parameter.name!r} of entry point {entry!r} is declared float; "
                f"{value!r} is not a number"
            ) from None
    if parameter.type == "path":
        return _path_in_project(parameter.name, value, source)
    return value


def _path_in_project(name: str, value: str, source: Source) -> str:
    """A local path as it will be on the instance: relative to the project."""
    if _URI.match(value):
        raise ProjectError(
            f"parameter {name!r} is declared path, and {value} would have to be downloaded on the "
            "instance: declare it as uri and open it in the entry point, or put it in the project"
        )
    absolute = Path(os.path.abspath(value))
    if not absolute.exists():
        absolute = source.directory / value
    if not absolute.exists():
        raise ProjectError(f"parameter {name!r}: there is no file or directory {value!r}")
    try:
        return str(absolute.resolve().relative_to(source.directory.resolve()))
    except ValueError:
        raise ProjectError(
            f"parameter {name!r}: {absolute} is outside the project {source.directory}, so it will "
            "not be on the instance; put it into the project or into a bucket"
        ) from None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _hydra_word(key: str, value: str) -> str:
    """``key=value`` as a Hydra override that means exactly ``value`` where it is a string."""
    word = f"{key}={value}"
    if _reads_as(word, value):
        return word
    # Hydra's quoted string: a backslash escapes the quote and, before a quote, itself.
    quoted = re.sub(r"(\\*)'", lambda match: match.group(1) * 2 + "\\'", value)
    trailing = len(quoted) - len(quoted.rstrip("\\"))
    return f"{key}='{quoted}{chr(92) * trailing}'"


def _reads_as(word: str, value: str) -> bool:
    """Whether Hydra takes the unquoted ``word`` for ``value``, or for something not a string."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    if parsed.is_sweep_override():
        return False  # a run is one job: what would be a sweep is a string here
    meant = parsed.value()
    return meant == value or not isinstance(meant, str)


def _words_of(command: str) -> Iterator[str]:
    """The Hydra overrides among the words of ``command``, ``--overrides TEXT`` taken apart."""
    words = iter(shlex.split(command))
    for word in words:
        if word == "--overrides":
            yield from shlex.split(next(words, ""))
        elif "=" in word and not word.startswith("-"):
            yield word


def _described(
    repository: Path,
    root: Path,
    subdirectory: str,
    name: str,
    commit: str | None,
    branch: str | None,
) -> Source:
    directory = root / subdirectory if subdirectory else root
    if not directory.is_dir():
        raise ProjectError(f"project {name}: there is no directory {directory}")
    head = commit or _git(repository, "rev-parse", "HEAD")
    remote = _git(repository, "remote", "get-url", "origin") if head else None
    is_dirty = bool(
        head and not commit and _git(directory, "status", "--porcelain", "--", ".", strip=False)
    )
    return Source(
        directory=directory,
        name=name,
        commit=head,
        repository=without_credentials(remote) if remote else None,
        branch=branch,
        dirty=is_dirty,
    )


def _fetch(location: str, version: str | None, target: str) -> None:
    """Clone (one commit) or unzip ``location`` into ``target``."""
    from mlflow.projects import utils

    try:
        if utils._is_zip_uri(location):
            path = utils._parse_file_uri(location)
            local = utils._is_local_uri(path)
            utils._unzip_repo(path if local else utils._fetch_zip_repo(path), target)
        else:
            utils._fetch_git_repo(location, version, target)
    except Exception as error:  # GitPython's errors repeat the URL, with its token
        raise ProjectError(
            f"project {without_credentials(location)}"
            f"{f' at {version}' if version else ''} cannot be fetched: "
            f"{without_credentials(str(error))}"
        ) from None


def _export(directory: Path, version: str, target: Path) -> str:
    """Write ``directory`` as it was at ``version`` to ``target``; return the commit.

    MLflow would check the version out in the user's own working tree.
    """
    commit = _git(directory, "rev-parse", "--verify", "--quiet", f"{version}^{{commit}}") or _git(
        directory, "rev-parse", "--verify", "--quiet", f"origin/{version}^{{commit}}"
    )
    if not commit:
        raise ProjectError(
            f"project {directory}: version {version!r} is no commit, tag or branch of a git "
            "repository here. If it exists at the remote, run: git fetch"
        )
    prefix = _git(directory, "rev-parse", "--show-prefix") or ""
    top = _git(directory, "rev-parse", "--show-toplevel") or str(directory)
    archive = subprocess.run(
        ["git", "-C", top, "archive", "--format=tar", f"{commit}:{prefix}"],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        raise ProjectError(
            f"project {directory}: cannot export {version}: {archive.stderr.decode().strip()}"
        )
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)
    return commit


def _git(directory: Path, *arguments: Sequence[str] | str, strip: bool = True) -> str | None:
    """git's answer, or None where it has none (no repository, no such object, no git)."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return (done.stdout.strip() if strip else done.stdout) or None if not done.returncode else None
