"""One job of a sweep as a file that runs anywhere: ``job.pyz``.

Composed here, so that a misspelt key fails before an instance exists and the instance needs no
``conf/``. The task function goes by reference where the instance can find it in the project, by
value (cloudpickle) where it cannot: a closure, an object, a script whose ``main()`` is not guarded.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import sys
import zipfile
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf, flag_override

from gce_backend.errors import ConfigError

_EPOCH = (1980, 1, 1, 0, 0, 0)
# What Hydra and OmegaConf register by themselves.
_OWN_RESOLVERS = ("now", "hydra", "python_version")


@dataclass(frozen=True)
class Task:
    """The task function of a program, as an instance can find it again.

    Args:
        function: itself.
        root: the project's directory, an absolute path.
        reference: module, qualname and how many decorators lie around it; None: by value.
        paths: of ``sys.path``, those in the project.
        main: module and path of the program, to be imported first where the function is in it.
    """

    function: Callable[[Any], Any]
    root: Path
    cwd: Path
    paths: tuple[str, ...]
    reference: dict[str, Any] | None
    main: dict[str, str] | None


def describe_task(function: Callable[[Any], Any], root: Path) -> Task:
    """How ``function``, in this process, will be found in the project at ``root``."""
    program = sys.modules["__main__"]
    spec = getattr(program, "__spec__", None)
    path = getattr(program, "__file__", None)
    file = Path(path).resolve() if path else None
    reference, main = _reference(function), None
    if reference is not None and not _is_in(reference["module"], root):
        reference = None
    if reference is not None and reference["module"] == "__main__":
        main = {"module": spec.name if spec is not None else "", "path": str(file)}
        if not _is_guarded(file):
            reference, main = None, None
    return Task(function, root, Path.cwd(), _paths_in(root), reference, main)


def job_archive(task: Task, config: DictConfig) -> bytes:
    """``job.pyz`` for one composed config: runs with ``python3``, the project as its directory.

    Raises:
        ConfigError: the function, or an object in the config, cannot be pickled.
    """
    payload = {
        "function": None if task.reference else task.function,
        "config": _portable(config),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {
            "__main__.py": b"from sweep_job.main import main\n\nraise SystemExit(main())\n",
            **_program(),
            "facts.json": json.dumps(_facts(task)).encode(),
            "job.pkl": _pickled(payload, by_value=task.reference is None),
            "resolvers.pkl": _resolvers(),
        }.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


def _program() -> dict[str, bytes]:
    folder = Path(str(resources.files("gce_backend") / "sweep" / "job"))
    return {f"sweep_job/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.py"))}


def _facts(task: Task) -> dict[str, Any]:
    from hydra.core.utils import JobRuntime
    from hydra.version import VersionBase

    return {
        "root": str(task.root),
        "cwd": str(task.cwd),
        "paths": list(task.paths),
        "argv": sys.argv,
        "main": task.main,
        "function": task.reference,
        "job_runtime": OmegaConf.to_container(JobRuntime.instance().conf),
        "version_base": pickle.dumps(VersionBase.instance().version_base).decode("latin-1"),
    }


def _portable(config: DictConfig) -> DictConfig:
    """``config`` without what only this machine can load: classes of its launcher and sweeper."""
    copy = config.copy()
    with flag_override(copy, ["readonly", "struct"], False):
        for node in ("launcher", "sweeper"):
            with flag_override(copy.hydra, ["readonly", "struct"], False):
                plain = OmegaConf.to_container(copy.hydra[node], resolve=False, enum_to_str=True)
                copy.hydra[node] = plain
    return copy


def _pickled(payload: Any, *, by_value: bool) -> bytes:
    try:
        return _by_value(payload) if by_value else pickle.dumps(payload)
    except Exception as error:  # whatever an object's own __reduce__ raises
        raise ConfigError(
            f"this sweep's task cannot be sent to an instance: {type(error).__name__}: {error}. "
            "A function at the top of a module of the project, called below "
            "`if __name__ == '__main__':`, goes by its name, and nothing of it is pickled"
        ) from error


def _by_value(payload: Any) -> bytes:
    """Cloudpickled, with the files' names of functions kept: a traceback shall tell them."""
    from cloudpickle import cloudpickle

    def code(found: CodeType) -> tuple[Any, tuple[Any, ...]]:
        make, arguments = cloudpickle._code_reduce(found)
        return make, tuple(
            found.co_filename if argument == "<dynamic-code>" else argument
            for argument in arguments
        )

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar = ChainMap({CodeType: code}, cloudpickle.Pickler.dispatch_table)

    buffer = io.BytesIO()
    Pickler(buffer).dump(payload)
    return buffer.getvalue()


def _resolvers() -> bytes:
    """OmegaConf resolvers that the program registered; those that cannot travel are left out."""
    from omegaconf.basecontainer import BaseContainer

    portable = {}
    for name, resolver in BaseContainer._resolvers.items():
        if name in _OWN_RESOLVERS or name.startswith("oc."):
            continue
        try:
            _by_value(resolver)
        except Exception:
            continue
        portable[name] = resolver
    return _by_value(portable) if portable else b""


def _reference(function: Callable[[Any], Any]) -> dict[str, Any] | None:
    """Where ``function`` can be looked up by name, or None."""
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or not qualname or "<" in qualname or module not in sys.modules:
        return None
    found: Any = sys.modules[module]
    for name in qualname.split("."):
        found = getattr(found, name, None)
    for depth in range(10):
        if found is function:
            return {"module": module, "qualname": qualname, "wrapped": depth}
        found = getattr(found, "__wrapped__", None)
    return None


def _paths_in(root: Path) -> tuple[str, ...]:
    """Where this process looks for modules of the project: its program's directory, ``src``."""
    absolute = (os.path.abspath(path) for path in sys.path)
    inside = [path for path in absolute if Path(path).is_relative_to(root)]
    return tuple(path for path in inside if "site-packages" not in path)


def _is_guarded(file: Path | None) -> bool:
    """Whether importing the program does no more than define: it calls nothing decorated."""
    if file is None:
        return False
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError):
        return False
    decorated = {
        node.name for node in body if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    called = {
        node.value.func.id
        for node in body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
    }
    return not decorated & called


def _is_in(module: str, root: Path) -> bool:
    """Whether a module lies in the project; an installed one may not be on the instance."""
    file = getattr(sys.modules[module], "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(root)
