"""Environments: the image's Python when it will do, uv's when it will not."""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest

from .cloud import wait_for
from .instance import TestInstance

pytestmark = pytest.mark.flow  # real processes and servers

UV = Path(sys.executable).with_name("uv")


def tiny_wheel(directory: Path) -> Path:
    """A package of one line, so that building an environment needs no index."""
    wheel = directory / "tiny_of_ours-1.0-py3-none-any.whl"
    info = "tiny_of_ours-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        files = {
            "tiny_of_ours.py": "print('tiny is here')\n",
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-of-ours\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def uv_wheel(instance: TestInstance, binary: bytes) -> dict[str, str]:
    """Put a wheel with a uv binary where the client puts it; the spec's entry for it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("uv-0.0.data/scripts/uv", binary)
    name = instance.paths.tool("uv-0.0-py3-none-any.whl")
    instance.bucket.put(name, buffer.getvalue())
    return {"object": name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}


def asked(**changes: object) -> dict[str, object]:
    return {
        "manager": "uv",
        "python": None,
        "requirements": [],
        "build_dependencies": [],
        "uv": None,
        "torch_backend": None,
        **changes,
    }


def test_an_image_that_has_everything_builds_nothing(instance: TestInstance) -> None:
    requirements = ["mlflow>=3", "torch", "# a comment", 'no-such-package; python_version < "3"']
    status = instance.run("true", environment=asked(requirements=requirements, python="3.9"))

    assert status["end_reason"] == "succeeded"
    assert "satisfies every requirement, skipped" in instance.log
    assert f"Python 3.9 was asked for, the image has 3.{sys.version_info.minor}." in instance.log


@pytest.mark.skipif(not UV.exists(), reason="uv is not installed here")
def test_an_empty_image_gets_its_environment_from_uv(
    instance: TestInstance, tmp_path: Path
) -> None:
    instance.image_python(str(Path(sys.base_prefix) / "bin" / "python3") + " -I")
    wheel = tiny_wheel(tmp_path)
    uv = uv_wheel(instance, UV.read_bytes())
    instance.variables["UV_OFFLINE"] = "1"
    status = instance.run(
        'python -c "import tiny_of_ours, sys; print(sys.prefix)"; which python',
        environment=asked(requirements=[f"tiny-of-ours @ {wheel.as_uri()}"], uv=uv),
    )

    assert (status["end_reason"], status["exit_code"]) == ("succeeded", 0), instance.log
    assert "tiny is here\n" in instance.log
    assert f"{instance.state}/environment/venv/bin/python" in instance.log
    assert "environment: ready after" in instance.log
    assert list((instance.state / "environment/venv").rglob("tiny_of_ours.*.pyc"))


@pytest.mark.skipif(not UV.exists(), reason="uv is not installed here")
def test_an_environment_that_cannot_be_built_ends_the_run_with_the_reason(
    instance: TestInstance,
) -> None:
    instance.variables["UV_OFFLINE"] = "1"
    uv = uv_wheel(instance, UV.read_bytes())
    status = instance.run(
        "true", environment=asked(requirements=["no-such-package-of-ours==1"], uv=uv)
    )

    assert (status["end_reason"], status["exit_code"]) == ("environment_failed", None)
    assert "'uv pip install' ended with exit code" in status["message"]
    assert "no-such-package-of-ours" in status["message"]
    assert status["verified"] and instance.plane.deleted


def test_the_torch_backend_is_given_where_torch_is_asked_for(instance: TestInstance) -> None:
    fake = b'#!/bin/bash\necho "uv $*"\nmkdir -p venv/bin\n'
    uv = uv_wheel(instance, fake)
    instance.run(
        "true",
        environment=asked(
            requirements=["torch==0.0.1"], build_dependencies=["wheel"], uv=uv, torch_backend="auto"
        ),
    )

    install = [line for line in instance.log.splitlines() if line.startswith("uv pip install")]
    assert len(install) == 2 and "--torch-backend" not in install[0]
    assert "--torch-backend=auto -r " in install[1] and "--compile-bytecode" in install[1]


def test_a_run_cancelled_while_its_environment_is_built_ends_at_once(
    instance: TestInstance,
) -> None:
    uv = uv_wheel(instance, b"#!/bin/bash\necho building\nsleep 60\n")
    instance.submit("true", environment=asked(requirements=["no-such-package"], uv=uv))
    instance.start()
    wait_for(lambda: "building" in instance.log, "the environment is being built")
    began = time.monotonic()
    instance.cancel()

    status = instance.wait()

    assert (status["end_reason"], status["exit_code"]) == ("cancelled", None)
    assert "before training" in status["message"]
    assert time.monotonic() - began < 15


def test_another_uv_than_promised_is_not_run(instance: TestInstance) -> None:
    uv = uv_wheel(instance, b"#!/bin/bash\necho evil\n")
    instance.bucket.put(uv["object"], b"something else")
    status = instance.run("true", environment=asked(requirements=["no-such-package"], uv=uv))

    assert status["end_reason"] == "agent_failed"
    assert uv["sha256"] in status["message"] and "evil" not in instance.log


def test_an_image_without_python_says_so(instance: TestInstance) -> None:
    (instance.bin / "python3").unlink()
    only = instance.root / "only"
    only.mkdir()
    for command in ("bash", "cat", "mv", "poweroff"):
        if found := shutil.which(command):
            (only / command).symlink_to(found)
    instance.submit("true", environment=asked())
    instance.variables["PATH"] = str(only)
    instance.start()

    status = instance.wait()

    assert status["end_reason"] == "environment_failed"
    assert "no python3" in status["message"]
