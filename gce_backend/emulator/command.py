"""``mlflow-gce emulator``: the emulator around a command, or by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .roots import ENVIRONMENT, holder

if TYPE_CHECKING:
    from .embedded import Emulator

F = TypeVar("F", bound=Callable[..., Any])

_BUCKET = re.compile(r"[a-z0-9]([a-z0-9._-]{0,220}[a-z0-9])?")
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


def _checked(
    _context: click.Context, _option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    for name in names:
        if not _BUCKET.fullmatch(name):
            raise click.BadParameter(
                f"{name!r}: a bucket's name is made of lower-case letters, digits, '-', '_' and "
                "'.', and begins and ends with a letter or digit"
            )
    return names


_ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".gce-emulator"),
    show_default=True,
    help="Where buckets are kept.",
)
_BUCKETS = click.option(
    "--bucket",
    "buckets",
    multiple=True,
    default=["emulator-bucket"],
    callback=_checked,
    show_default=True,
    help="Bucket to have; may be repeated. The first is MLFLOW_GCE_BUCKET.",
)
_BOOT = click.option(
    "--boot-seconds", default=1.0, show_default=True, help="From the insert to the startup script."
)
_SSH = click.option(
    "--ssh-seconds", default=0.0, show_default=True, help="From then until SSH answers."
)
_LEGACY = click.option(
    "--legacy-images", is_flag=True, help="Retired families (pytorch-latest-cpu) resolve."
)


def _settings(command: F) -> F:
    """The options of whatever starts an emulator."""
    for option in (_LEGACY, _SSH, _BOOT, _BUCKETS, _ROOT):
        command = option(command)
    return command


@click.group()
def emulator() -> None:
    """Emulate Compute Engine and Cloud Storage on this machine."""


@emulator.command(name="exec", context_settings={"ignore_unknown_options": True})
@_settings
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(buckets: tuple[str, ...], command: tuple[str, ...], **options: Any) -> None:
    """Run COMMAND with the emulator around it; the exit code is COMMAND's.

    Everything but the buckets is gone afterwards.
    """
    with _running(**options) as running:
        code = _run(command, {**os.environ, **_environment(running, buckets)})
    sys.exit(code if code >= 0 else 128 - code)


@emulator.command()
@_settings
@click.option("--foreground", is_flag=True, help="Stay, until Ctrl-C.")
def start(root: Path, buckets: tuple[str, ...], foreground: bool, **options: Any) -> None:
    """Start the emulator; `mlflow-gce emulator env` says how to reach it."""
    if not foreground:
        _start_in_background(root, buckets, **options)
        return
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopped.set())
    with _running(root, **options) as running:
        state = {
            "pid": os.getpid(),
            "env": _environment(running, buckets),
            "limits": running.limits,
        }
        temporary = root / f"{ENVIRONMENT}.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(root / ENVIRONMENT)
        click.echo(f"the emulator runs: {running.compute_url}; {running.limits}")
        stopped.wait()


@emulator.command()
@_ROOT
def stop(root: Path) -> None:
    """Stop the emulator and everything that runs in it."""
    _state(root)
    found = holder(root)
    if found is None or not found.is_alive:
        (root / ENVIRONMENT).unlink(missing_ok=True)
        click.echo("the emulator was dead; the next start removes what it left")
        return
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while found.is_alive:  # the root is free a moment earlier
        if time.monotonic() > deadline:
            raise click.ClickException(f"process {found.pid} has not ended")
        time.sleep(0.05)
    click.echo("the emulator has stopped")


@emulator.command()
@_ROOT
def env(root: Path) -> None:
    """Print the environment of clients, for the shell: eval "$(mlflow-gce emulator env)"."""
    state = _state(root)
    if not _is_alive(root):
        raise click.ClickException(
            f"the emulator on {root} is dead. Start one: mlflow-gce emulator start --root {root}"
        )
    for name, value in state["env"].items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _environment(running: Emulator, buckets: tuple[str, ...]) -> dict[str, str]:
    try:
        for bucket in buckets:
            running.create_bucket(bucket)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    return {**running.env, "MLFLOW_GCE_BUCKET": buckets[0]}


@contextmanager
def _running(root: Path, **options: Any) -> Iterator[Emulator]:
    """An emulator for the block; what keeps it from starting becomes a message."""
    from . import Emulator, RootInUse

    running = Emulator(root, **options)
    try:
        running.__enter__()
    except (RootInUse, OSError) as error:
        raise click.ClickException(str(error)) from error
    try:
        yield running
    finally:
        running.__exit__()


def _run(command: tuple[str, ...], environment: dict[str, str]) -> int:
    """The command's exit code. Ctrl-C reaches it too, and it alone decides what that means."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came before there was a process

    def pass_on(number: int, _frame: object) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    # A function, not SIG_IGN, which the command would inherit; the terminal sends it to both.
    signal.signal(signal.SIGINT, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise click.ClickException(f"{shlex.join(command)}: {error.strerror}") from error
    for missed in early:
        process.send_signal(missed)
    return process.wait()


def _start_in_background(
    root: Path,
    buckets: tuple[str, ...],
    boot_seconds: float,
    ssh_seconds: float,
    legacy_images: bool,
) -> None:
    """The same command once more, in a session of its own and in its foreground."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    if _is_alive(root):
        raise click.ClickException(
            f"an emulator runs already on {root}. Stop it: mlflow-gce emulator stop --root {root}"
        )
    words = ["--root", str(root), "--boot-seconds", str(boot_seconds)]
    words += ["--ssh-seconds", str(ssh_seconds), *(["--legacy-images"] if legacy_images else [])]
    words += [word for bucket in buckets for word in ("--bucket", bucket)]
    # Under a name of its own at first: another start at this moment has one as well.
    log = root / f"emulator.log.{os.getpid()}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gce_backend.emulator.command", "start", "--foreground", *words],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        _wait_for(process, root, log)
    except BaseException:  # Ctrl-C too: nobody would know of an emulator that runs on
        _end(process)
        log.unlink()
        raise
    log.replace(root / "emulator.log")
    click.echo(f"the emulator runs; {_state(root)['limits']}")
    click.echo(f'Next: eval "$(mlflow-gce emulator env --root {root})"')


def _wait_for(process: subprocess.Popen[bytes], root: Path, log: Path) -> None:
    """Until the emulator runs that ``process`` is, and no other."""
    deadline = time.monotonic() + _START_SECONDS
    while not ((found := holder(root)) and found.pid == process.pid and _has_state(root)):
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            raise click.ClickException(f"the emulator did not start:\n{text}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:
        process.kill()  # nothing, where it has ended; else its watchdog does the rest


def _has_state(root: Path) -> bool:
    return (root / ENVIRONMENT).exists()


def _state(root: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((root / ENVIRONMENT).read_text())
    except FileNotFoundError:
        raise click.ClickException(
            f"no emulator runs on {root}. Start one: mlflow-gce emulator start --root {root}"
        ) from None
    return state


def _is_alive(root: Path) -> bool:
    """Whether the emulator of ``root`` is, and not another process that got its number."""
    found = holder(root)
    return found is not None and found.is_alive


if __name__ == "__main__":
    emulator()
