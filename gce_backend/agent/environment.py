"""The trainer's Python: the image's own when it satisfies every requirement, else built by uv."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

from .bundle import fetch
from .endpoint import retrying
from .errors import EnvironmentFailed, Stopped
from .log import RunLog
from .spec import Environment
from .stop import Stop
from .storage import Storage

# Run by the image's Python: prints "ok", or why not, one line each. Any Python 3 can read it.
_CHECK = r"""
import json, sys
try:
    from importlib.metadata import PackageNotFoundError, version
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement
except ImportError:
    print("the image's Python has neither packaging nor pip"); sys.exit()
bad = []
for line in json.loads(sys.argv[1]):
    line = line.split(" #")[0].strip()
    if not line or line.startswith("#"):
        continue
    try:
        wanted = Requirement(line)
    except Exception:
        bad.append("'%s' can only be judged by an installer" % line); continue
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
        continue
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        bad.append("%s is not installed" % wanted.name); continue
    if wanted.url or not wanted.specifier.contains(found, prereleases=True):
        bad.append("%s is %s, wanted is %s" % (wanted.name, found, wanted))
print("\n".join(bad) or "ok")
"""
_TAIL_LINES = 15


def prepare(
    environment: Environment,
    directory: Path,
    *,
    storage: Storage,
    bucket: str,
    log: RunLog,
    stop: Stop,
    until: float,
) -> str:
    """Make the environment; returns its ``bin`` directory, or "" for the image's own Python.

    Raises EnvironmentFailed with the installer's last lines; Stopped when told to stop.
    """
    python = shutil.which("python3")
    if python is None:
        raise EnvironmentFailed("the image has no python3 on its PATH")
    _say_version(environment, python, log)
    if environment.manager == "local":
        log.say(f"environment: the image's own Python, {python}, as asked")
        return ""
    unmet = _unmet(environment, python)
    if not unmet:
        log.say(f"environment: the image's Python ({python}) satisfies every requirement, skipped")
        return ""
    log.say(f"environment: built with uv, since {unmet[0]}" + (" …" if unmet[1:] else ""))
    began = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    uv = _uv(environment, directory, storage, bucket, until, stop)
    _build(environment, directory, uv, python, log, stop)
    log.say(f"environment: ready after {time.monotonic() - began:.1f} s")
    return str(directory / "venv" / "bin")


def _say_version(environment: Environment, python: str, log: RunLog) -> None:
    asked = (environment.python or "").split(".")[:2]
    script = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    found = _ask(python, script)
    if environment.python and found.split(".")[: len(asked)] != asked:
        log.say(f"environment: Python {environment.python} was asked for, the image has {found}")


def _unmet(environment: Environment, python: str) -> list[str]:
    if not environment.requirements:
        return []
    answer = _ask(python, _CHECK, json.dumps(environment.requirements)).strip()
    return [] if answer == "ok" else answer.splitlines() or ["the image's Python does not answer"]


def _ask(python: str, script: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [python, "-c", script, *arguments], capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(f"the image's Python {python} does not run: {error}") from error
    return done.stdout.strip()


def _uv(
    environment: Environment,
    directory: Path,
    storage: Storage,
    bucket: str,
    until: float,
    stop: Stop,
) -> Path:
    """The uv binary out of the wheel in the bucket (a wheel is a zip)."""
    binary = directory / "uv"
    if binary.exists():
        return binary
    stored = environment.uv
    if stored is None:
        if found := shutil.which("uv"):
            return Path(found)
        raise EnvironmentFailed("the spec names no uv wheel, and the image has no uv")
    wheel = directory / "uv.whl"
    retrying(lambda: fetch(storage, bucket, stored, wheel), until, give_up=stop.is_set)
    with zipfile.ZipFile(wheel) as archive:
        inside = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.data/scripts/uv", n)]
        if not inside:
            raise EnvironmentFailed(f"gs://{bucket}/{stored.object} holds no uv binary")
        temporary = directory / ".uv.tmp"
        with archive.open(inside[0]) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target)
    temporary.chmod(0o755)
    os.replace(temporary, binary)
    return binary


def _build(
    environment: Environment, directory: Path, uv: Path, python: str, log: RunLog, stop: Stop
) -> None:
    venv = directory / "venv"
    requirements = directory / "requirements.txt"
    requirements.write_text("\n".join(environment.requirements) + "\n")
    _run(
        [str(uv), "venv", "--quiet", "--clear", "--python", python, str(venv)], directory, log, stop
    )
    install = [
        str(uv),
        "pip",
        "install",
        "--compile-bytecode",
        "--python",
        str(venv / "bin/python3"),
    ]
    if environment.build_dependencies:
        _run([*install, *environment.build_dependencies], directory, log, stop)
    torch = any(re.match(r"\s*torch", line) for line in environment.requirements)
    if environment.torch_backend and torch:
        install.append(f"--torch-backend={environment.torch_backend}")
    _run([*install, "-r", str(requirements)], directory, log, stop)


def _run(command: list[str], directory: Path, log: RunLog, stop: Stop) -> None:
    """Run an installer, its output in the run's log. Ends it when told to stop."""
    if stop.is_set():
        raise Stopped(stop.reason)
    variables = {
        **os.environ,
        "UV_CACHE_DIR": str(directory / "cache"),
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log.descriptor,
        stderr=log.descriptor,
        env=variables,
        cwd=directory,
        start_new_session=True,
    )
    while process.poll() is None:
        if stop.wait(0.1):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Stopped(stop.reason)
    if process.returncode:
        raise EnvironmentFailed(
            f"'uv {' '.join(command[1:3])}' ended with exit code {process.returncode}; its last "
            f"lines:\n{log.tail(_TAIL_LINES)}"
        )
