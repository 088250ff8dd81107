"""``mlflow-gce emulator``: the emulator around a command, or by itself."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .embedded import Emulator

_STATE = "emulator.json"
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0

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
    show_default=True,
    help="Bucket to have; may be repeated. The first is MLFLOW_GCE_BUCKET.",
)
_BOOT = click.option(
    "--boot-seconds", default=1.0, show_default=True, help="From the insert to the startup script."
)


@click.group()
def emulator() -> None:
    """Emulate Compute Engine and Cloud Storage on this machine."""


@emulator.command(name="exec", context_settings={"ignore_unknown_options": True})
@_ROOT
@_BUCKETS
@_BOOT
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    root: Path, buckets: tuple[str, ...], boot_seconds: float, command: tuple[str, ...]
) -> None:
    """Run COMMAND with the emulator around it; the exit code is COMMAND's.

    Everything but the buckets is gone afterwards.
    """
    from .embedded import Emulator

    with Emulator(root, boot_seconds=boot_seconds) as running:
        environment = {**os.environ, **_environment(running, buckets)}
        try:
            process = subprocess.Popen(command, env=environment)
        except OSError as error:
            raise click.ClickException(f"{shlex.join(command)}: {error.strerror}") from error
        code = _wait(process)
    sys.exit(code if code >= 0 else 128 - code)


@emulator.command()
@_ROOT
@_BUCKETS
@_BOOT
@click.option("--foreground", is_flag=True, help="Stay, until Ctrl-C.")
def start(root: Path, buckets: tuple[str, ...], boot_seconds: float, foreground: bool) -> None:
    """Start the emulator; `mlflow-gce emulator env` says how to reach it."""
    if not foreground:
        _start_in_background(root, buckets, boot_seconds)
        return
    from .embedded import Emulator

    with Emulator(root, boot_seconds=boot_seconds) as running:
        state = {"pid": os.getpid(), "env": _environment(running, buckets)}
        temporary = root / f"{_STATE}.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(root / _STATE)
        click.echo(f"the emulator runs: {running.compute_url}")
        try:
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
        finally:
            (root / _STATE).unlink(missing_ok=True)


@emulator.command()
@_ROOT
def stop(root: Path) -> None:
    """Stop the emulator and everything that runs in it."""
    state = _state(root)
    os.kill(state["pid"], signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while _is_alive(state["pid"]):
        if time.monotonic() > deadline:
            raise click.ClickException(f"process {state['pid']} has not ended")
        time.sleep(0.05)
    click.echo("the emulator has stopped")


@emulator.command()
@_ROOT
def env(root: Path) -> None:
    """Print the environment of clients, for the shell: eval "$(mlflow-gce emulator env)"."""
    for name, value in _state(root)["env"].items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _environment(running: Emulator, buckets: tuple[str, ...]) -> dict[str, str]:
    for bucket in buckets:
        running.create_bucket(bucket)
    return {**running.env, "MLFLOW_GCE_BUCKET": buckets[0]}


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The command's exit code. Ctrl-C reaches it too, and it alone decides what that means."""

    def pass_on(number: int, _frame: object) -> None:
        process.send_signal(number)

    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to both
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    return process.wait()


def _start_in_background(root: Path, buckets: tuple[str, ...], boot_seconds: float) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if (root / _STATE).exists() and _is_alive(_state(root)["pid"]):
        raise click.ClickException(f"an emulator runs already on {root}")
    (root / _STATE).unlink(missing_ok=True)
    words = [w for bucket in buckets for w in ("--bucket", bucket)]
    with (root / "emulator.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gce_backend.emulator.command", "start", "--foreground"),
                *("--root", str(root), "--boot-seconds", str(boot_seconds), *words),
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    while not (root / _STATE).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            text = (root / "emulator.log").read_text(errors="replace")[-2000:]
            raise click.ClickException(f"the emulator did not start:\n{text}")
        time.sleep(0.02)
    click.echo(f'the emulator runs. Next: eval "$(mlflow-gce emulator env --root {root})"')


def _state(root: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((root / _STATE).read_text())
    except FileNotFoundError:
        raise click.ClickException(
            f"no emulator runs on {root}. Start one: mlflow-gce emulator start --root {root}"
        ) from None
    return state


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    emulator()
