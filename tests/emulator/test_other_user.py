"""The emulator as another user than root: these tests once more, without any privilege."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.flow

CHECKOUT = Path(__file__).parents[2]
NOBODY = "65534"
STORIES = [
    "test_methods.py",  # everything the page names, by Google's clients
    "test_ssh.py::test_files_go_both_ways_and_land_at_home",
    "test_scripts.py::test_a_startup_script_comes_from_a_bucket_with_the_instances_own_token",
]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Open to everyone, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="another-user-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def test_another_user_has_everything_but_namespaces_limits_and_port_22(directory: Path) -> None:
    if os.geteuid() != 0:
        return  # then all of these tests show it
    stories = [str(Path(__file__).with_name(story)) for story in STORIES]
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *stories]
    environment = {
        "HOME": str(directory),
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(directory),
    }
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *pytest_]
    leave = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs"]
    lines = [*_show(directory), f"cd {CHECKOUT}", f"exec {shlex.join([*leave, *words])}"]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-ec", "\n".join(lines)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(STORIES)} passed" in done.stdout


def _show(directory: Path) -> list[str]:
    """Commands that let everyone pass to the interpreter, in a mount namespace of its own.

    Where a closed directory (root's home) is on the way, an empty one takes its place that holds
    what is needed of it.
    """
    lines = []
    wanted = [Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), CHECKOUT]
    closed = {path: _closed(path) for path in wanted}
    for number, path in enumerate(path for path in wanted if closed[path]):
        stage = directory / "shown" / str(number)
        lines += [f"mkdir -p {stage}", f"mount --rbind {path} {stage}"]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {path}" for path in {*closed.values()} - {None}]
    for number, path in enumerate(path for path in wanted if closed[path]):
        lines += [f"mkdir -p {path}", f"mount --rbind {directory}/shown/{number} {path}"]
    return lines


def _closed(path: Path) -> Path | None:
    """The outermost directory on the way to ``path`` that others may not pass."""
    return next((each for each in reversed(path.parents) if not each.stat().st_mode & 0o001), None)
