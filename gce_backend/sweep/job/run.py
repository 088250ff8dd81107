"""The job's own process: the task function found again, and Hydra's ``run_job`` around it."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FRAMES = 100


def run(archive: str, facts: dict[str, Any], result: str) -> int:
    """Run the job; ``result`` gets how it ended. The exit code is 0 when the function returned."""
    told: dict[str, Any] = {"status": "STARTED"}
    try:
        told.update(_run(archive, facts, lambda more: _write(result, {**told, **more})))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        why = f"the task left with sys.exit({left.code!r}) instead of returning"
        told.update(_known(result), status="FAILED", error=describe(RuntimeError(why)))
        _write(result, told)
        return code or 1
    except BaseException as error:  # Hydra's own, a pickle that does not load: told as the job's
        told.update(_known(result), status="FAILED", error=describe(error))
    _write(result, told)
    if told["status"] != "COMPLETED":
        sys.stderr.write(told["error"]["text"])
    return int(told["status"] != "COMPLETED")


def _run(archive: str, facts: dict[str, Any], note: Callable[[Any], None]) -> dict[str, Any]:
    sys.argv = list(facts["argv"])
    sys.path[:0] = facts["paths"]
    _import_main(facts)
    with zipfile.ZipFile(archive) as files:
        loaded = pickle.loads(files.read("job.pkl"))
        resolvers = files.read("resolvers.pkl") if "resolvers.pkl" in files.namelist() else b""
    from hydra.core.utils import JobRuntime, JobStatus, run_job, setup_globals
    from hydra.types import HydraContext

    setup_globals()
    _restore(facts, resolvers, JobRuntime)
    config = loaded["config"]
    directory = _output_dir(config)
    note({"output_dir": directory})
    task = loaded["function"] or _find(facts["function"])
    job = run_job(
        hydra_context=HydraContext(config_loader=None, callbacks=_callbacks(config)),
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    told = {
        "output_dir": directory,
        "task_name": job.task_name,
        "working_dir": job.working_dir,
        "overrides": list(job.overrides),
    }
    value = job._return_value
    if job.status == JobStatus.COMPLETED:
        plain, is_exact = plain_value(value)
        return {**told, "status": "COMPLETED", "value": plain, "exact": is_exact, "error": None}
    return {**told, "status": "FAILED", "error": describe(value)}


def _import_main(facts: dict[str, Any]) -> None:
    """Import the user's program under ``__mp_main__``, so that its ``main()`` does not run."""
    main = facts["main"]
    if main is None:
        return
    from multiprocessing import spawn

    if main["module"]:
        spawn._fixup_main_from_name(main["module"])  # type: ignore[attr-defined]
    else:
        spawn._fixup_main_from_path(main["path"])  # type: ignore[attr-defined]


def _find(reference: dict[str, Any]) -> Callable[[Any], Any]:
    found: Any = importlib.import_module(reference["module"])
    for name in reference["qualname"].split("."):
        found = getattr(found, name)
    for _ in range(reference["wrapped"]):  # @hydra.main and others put on with functools.wraps
        found = found.__wrapped__
    function: Callable[[Any], Any] = found
    return function


def _restore(facts: dict[str, Any], resolvers: bytes, runtime: Any) -> None:
    """What Hydra keeps outside of the config: names, its version base, the user's resolvers."""
    from hydra.version import VersionBase
    from omegaconf import OmegaConf
    from omegaconf.basecontainer import BaseContainer

    runtime.instance().conf = OmegaConf.create(facts["job_runtime"])
    VersionBase.instance().version_base = pickle.loads(facts["version_base"].encode("latin-1"))
    if resolvers:
        BaseContainer._resolvers.update(pickle.loads(resolvers))


def _callbacks(config: Any) -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks(config)


def _output_dir(config: Any) -> str:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    HydraConfig.instance().set_config(config)
    where = [str(OmegaConf.select(config, f"hydra.sweep.{key}")) for key in ("dir", "subdir")]
    return os.path.abspath(os.path.join(*where))


def plain_value(value: Any) -> tuple[Any, bool]:
    """``value`` as plain data, and whether nothing got lost: what is not plain becomes its text."""
    if value is None or type(value) in (bool, int, float, str):
        return value, True
    if isinstance(value, (list, tuple)):
        parts = [plain_value(item) for item in value]
        return [part for part, _ in parts], all(exact for _, exact in parts)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        items = {key: plain_value(item) for key, item in value.items()}
        return {k: part for k, (part, _) in items.items()}, all(e for _, e in items.values())
    if callable(getattr(value, "item", None)) and getattr(value, "size", None) in (1, None):
        return plain_value(value.item())  # a number of NumPy's
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 1) == 0:
        return plain_value(value.item())  # a number of PyTorch's
    return repr(value), False


def describe(error: BaseException, depth: int = 5) -> dict[str, Any]:
    """An exception with its traceback and causes, as plain data."""
    kind = type(error)
    frames = [
        [frame.filename, frame.lineno or 1, frame.name, frame.line or ""]
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    cause = error.__cause__
    context = None if error.__suppress_context__ else error.__context__
    return {
        "module": kind.__module__,
        "type": kind.__qualname__,
        "message": str(error),
        "args": [plain_value(item)[0] for item in error.args],
        "exact": all(plain_value(item)[1] for item in error.args),
        "frames": frames[-_FRAMES:],
        "cause": describe(cause, depth - 1) if cause is not None and depth else None,
        "context": describe(context, depth - 1) if context is not None and depth else None,
        "text": "".join(traceback.format_exception(kind, error, error.__traceback__)),
    }


def _known(result: str) -> dict[str, Any]:
    """What was noted before the job failed."""
    try:
        noted: dict[str, Any] = json.loads(Path(result).read_text())
    except FileNotFoundError:
        return {}
    return noted


def _write(result: str, told: dict[str, Any]) -> None:
    temporary = Path(f"{result}.tmp")
    temporary.write_text(json.dumps(told))
    temporary.replace(result)
