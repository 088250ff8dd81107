"""What has to lie in the bucket before an instance may bill: bundle, agent, uv, and the spec."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.bundle import Bundle
from gce_backend.config import Settings, StallAction
from gce_backend.environment import UV_VERSION, Environment, download_uv, sha256_of
from gce_backend.instance import Agent
from gce_backend.project import EntryPoint
from gce_backend.storage import Storage

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment a zip file can hold


@dataclass(frozen=True)
class Shipment:
    """Objects in the bucket, named by what they contain, so shared by every run with the same.

    Args:
        uv: the wheel's object and its sha256, None where no environment may have to be built.
    """

    bundle: Bundle
    bundle_object: str
    agent: Agent
    uv: tuple[str, str] | None


def ship(
    storage: Storage, bundle: Bundle, environment: Environment, *, prefix: str, scratch: Path
) -> Shipment:
    """Put bundle, agent and uv into the bucket, each unless it is there already."""
    paths = RunPaths(prefix, run_id="")
    bundle_object = paths.bundle(bundle.sha256)
    storage.put_once(bundle_object, bundle.path)
    archive = agent_archive()
    sha256 = hashlib.sha256(archive).hexdigest()
    agent = Agent(storage.bucket, paths.tool(f"agent-{sha256[:16]}.pyz"), sha256)
    storage.put_once(agent.object, archive)
    uv = ship_uv(storage, paths, scratch) if environment.may_need_uv else None
    return Shipment(bundle, bundle_object, agent, uv)


def run_spec(
    *,
    settings: Settings,
    shipment: Shipment,
    entry: EntryPoint,
    environment: Environment,
    tracking: dict[str, Any],
    run_id: str,
    attempt: int,
    deadline: float,
) -> dict[str, Any]:
    """The document the agent works from; ``ARCHITECTURE.md`` explains its fields.

    Args:
        deadline: unix seconds at which the agent ends the training and saves.
    """
    uv = shipment.uv
    return {
        "version": 1,
        "run_id": run_id,
        "attempt": attempt,
        "bucket": settings.bucket,
        "prefix": settings.gce.prefix,
        "bundle": {
            "object": shipment.bundle_object,
            "sha256": shipment.bundle.sha256,
            "size": shipment.bundle.size,
        },
        "workdir": "",
        "command": entry.command,
        "env": {},
        "environment": {
            "manager": environment.manager,
            "python": environment.python,
            "requirements": environment.requirements,
            "build_dependencies": environment.build_dependencies,
            "uv": {"object": uv[0], "sha256": uv[1]} if uv else None,
            "torch_backend": settings.gce.torch_backend,
        },
        "tracking": tracking,
        "deadline": deadline,
        "grace_seconds": settings.gce.grace_seconds,
        "require": list(settings.gce.results.require),
        "system_metrics_seconds": settings.gce.system_metrics,
        "stall_minutes": settings.gce.stall_minutes,
        "stall_end": settings.gce.stall_action is StallAction.end,
    }


def agent_archive() -> bytes:
    """The agent package as one executable zip; the same bytes for the same sources."""
    folder = Path(str(resources.files("gce_backend") / "agent"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        main = "from agent.main import main\n\nraise SystemExit(main())\n"
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), main)
        for path in sorted(folder.rglob("*.py")):
            name = f"agent/{path.relative_to(folder).as_posix()}"
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    return buffer.getvalue()


def ship_uv(storage: Storage, paths: RunPaths, scratch: Path) -> tuple[str, str]:
    """uv's wheel in the bucket, from the bucket itself, this machine's cache, or the index."""
    name = paths.tool(f"uv-{UV_VERSION}-x86_64.whl")
    checksum = f"{name}.sha256"
    if (known := storage.read(checksum)) is not None:
        return name, known.decode()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlflow-gce"
    wheel = cache / f"uv-{UV_VERSION}-x86_64.whl"
    if not wheel.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        download_uv(scratch).replace(wheel)
    sha256 = sha256_of(wheel)
    storage.put_once(name, wheel)
    storage.put_once(checksum, sha256.encode())
    return name, sha256
