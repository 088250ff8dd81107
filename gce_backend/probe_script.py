"""What an instance finds out about itself, for ``mlflow-gce doctor --probe``.

Runs there as the startup script: standard library alone, and no other module of ours. What to look
at stands in the instance's metadata; the answers go to its guest attributes, which take no
permission, and to the serial port.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The metadata attribute with the questions, the namespace of the guest attribute ``answers``, and
#: how a line on the serial port begins that holds the same answers.
MARK = "mlflow-gce-probe"
_METADATA = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
_STORAGE = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
_COMPUTE = os.environ.get(
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "https://compute.googleapis.com/compute/v1/"
)
_PERMISSION = "compute.instances.delete"
_SECONDS = 20.0  # without an answer
_INDEX_SECONDS = 60.0


class Failed(Exception):
    """What was tried, and what came back."""


def call(what: str, url: str, *, method: str = "GET", body: bytes | None = None) -> bytes:
    """The answer of a Google API, asked as the instance's service account."""
    request = urllib.request.Request(url, data=body, method=method)
    request.add_header("Authorization", f"Bearer {token()}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
    return send(what, request)


def send(what: str, request: urllib.request.Request) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read(2000).decode("utf-8", "replace")
        with contextlib.suppress(ValueError, LookupError, TypeError):
            text = json.loads(text)["error"]["message"]
        raise Failed(f"{what}: {error.code} {' '.join(text.split())[:300]}") from error
    except OSError as error:
        raise Failed(f"{what}: no answer ({getattr(error, 'reason', error)})") from error


def metadata(path: str, *, value: bytes | None = None) -> str:
    """What the metadata server has at ``path``; or put ``value`` there."""
    request = urllib.request.Request(
        f"http://{_METADATA}/computeMetadata/v1/{path}",
        data=value,
        method="GET" if value is None else "PUT",
        headers={"Metadata-Flavor": "Google"},
    )
    return send(f"metadata server, {path}", request).decode()


def token() -> str:
    return str(json.loads(metadata("instance/service-accounts/default/token"))["access_token"])


def bucket(asked: dict[str, Any]) -> str:
    """Write, list, read, write again, and delete an object, as the agent does."""
    name, where = asked["object"], f"gs://{asked['bucket']}"
    place = f"{_STORAGE}/storage/v1/b/{asked['bucket']}/o"
    quoted = urllib.parse.quote(name, safe="")
    upload = (
        f"{_STORAGE}/upload/storage/v1/b/{asked['bucket']}/o?uploadType=media"
        f"&name={urllib.parse.quote(name, safe='')}"
    )
    call(f"writing {where}/{name}", upload, method="POST", body=b'"first"')
    try:
        listing = call(f"listing {where}", f"{place}?prefix={quoted}")
        if name not in [item["name"] for item in json.loads(listing).get("items", [])]:
            raise Failed(f"listing {where}: it does not show {name}, which was just written")
        call(f"reading {where}/{name}", f"{place}/{quoted}?alt=media")
        call(f"overwriting {where}/{name}", upload, method="POST", body=b'"second"')
    finally:
        call(f"deleting {where}/{name}", f"{place}/{quoted}", method="DELETE")
    return f"{where}: an object was written, listed, read, overwritten and deleted from there"


def deletion(_: dict[str, Any]) -> str:
    """Whether the service account may delete this instance; it is not deleted."""
    project = metadata("project/project-id")
    zone = metadata("instance/zone").rpartition("/")[2]
    url = (
        f"{_COMPUTE.rstrip('/')}/projects/{project}/zones/{zone}/instances/"
        f"{metadata('instance/name')}/testIamPermissions"
    )
    body = json.dumps({"permissions": [_PERMISSION]}).encode()
    granted = json.loads(call("asking for its own permissions", url, method="POST", body=body))
    if _PERMISSION not in granted.get("permissions", []):
        raise Failed(f"its service account lacks {_PERMISSION}: runs end at their deadline only")
    return f"its service account has {_PERMISSION} on itself"


def index(asked: dict[str, Any]) -> str:
    """Let uv, out of its wheel in the bucket, look a package up where runs would get theirs."""
    wheel = asked["uv"]
    url = f"{_STORAGE}/storage/v1/b/{asked['bucket']}/o/{urllib.parse.quote(wheel['object'], '')}"
    data = call(f"reading gs://{asked['bucket']}/{wheel['object']}", f"{url}?alt=media")
    if hashlib.sha256(data).hexdigest() != wheel["sha256"]:
        raise Failed(f"gs://{asked['bucket']}/{wheel['object']} has another checksum")
    folder = Path(tempfile.mkdtemp())
    try:
        return _look_up(folder, data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look_up(folder: Path, wheel: bytes) -> str:
    file, program = folder / "uv.whl", folder / "uv"
    file.write_bytes(wheel)
    with zipfile.ZipFile(file) as archive:
        inside = next(n for n in archive.namelist() if re.fullmatch(r".*\.data/scripts/uv", n))
        program.write_bytes(archive.read(inside))
    program.chmod(0o755)
    words = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-deps", "--no-cache"]
    done = subprocess.run(
        [str(program), *words, "-"],
        input="uv\n",
        capture_output=True,
        text=True,
        timeout=_INDEX_SECONDS,
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "UV_PYTHON_DOWNLOADS": "never"},
    )
    if done.returncode:
        raise Failed(f"uv found no package: {' '.join(done.stderr.split())[-400:]}")
    return f"uv reaches it from there, and found {done.stdout.strip()}"


def tracking(asked: dict[str, Any]) -> str:
    """Any answer shows that there is a way."""
    uri = asked["tracking"].rstrip("/")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{uri}/health", timeout=_SECONDS) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError as error:
        raise Failed(f"{uri}: no answer ({getattr(error, 'reason', error)})") from error
    return f"{uri} answers from there (HTTP {status})"


def answer(check: Callable[[dict[str, Any]], str], asked: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": True, "detail": check(asked)}
    except Failed as error:
        return {"ok": False, "detail": str(error)}
    except Exception as error:  # whatever it is, the others are still to be told
        return {"ok": False, "detail": f"{type(error).__name__}: {error}"}


def main() -> None:
    asked = json.loads(metadata(f"instance/attributes/{MARK}"))
    checks = {"bucket": bucket, "deletion": deletion, "index": index, "tracking": tracking}
    answers = {name: answer(checks[name], asked) for name in asked["questions"]}
    text = json.dumps(answers)
    print(f"\n{MARK} {text}", flush=True)
    metadata(f"instance/guest-attributes/{MARK}/answers", value=text.encode())


if __name__ == "__main__":
    main()
