"""The emulator as a library: a context manager that runs it in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from . import isolation, leftovers, roots
from .calls import Call
from .cloud import Cloud, Settings
from .doors import Handlers, addresses
from .faults import Fault
from .gcs_server import GcsServer
from .life import Life
from .limits import Limits
from .operations import ACCOUNT
from .ports import free_port, usable
from .services import Services
from .storage_front import StorageFront

T = TypeVar("T")

_START_SECONDS = 30.0
_CALL_SECONDS = 60.0


class Emulator:
    """Compute Engine and Cloud Storage on loopback.

    Args:
        root: where buckets are kept, for the next start as well; a temporary directory by default.
        project: the only project that exists.
        boot_seconds, ssh_seconds, shutdown_seconds, legacy_images, isolated: see
            :class:`.cloud.Settings`.
        limited: instances get no more cores and memory than their machine type has; by default
            where this machine can do it, see :attr:`limits`.

    Raises:
        roots.RootInUse: another emulator runs on ``root``.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        project: str = "emulator-project",
        boot_seconds: float = 0.2,
        ssh_seconds: float = 0.0,
        shutdown_seconds: float = 2.0,
        legacy_images: bool = False,
        isolated: bool | None = None,
        limited: bool = True,
    ) -> None:
        self._root = root
        self._limited = limited
        self._options: dict[str, Any] = {
            "project": project,
            "boot_seconds": boot_seconds,
            "ssh_seconds": ssh_seconds,
            "shutdown_seconds": shutdown_seconds,
            "legacy_images": legacy_images,
            "isolated": isolation.is_permitted() if isolated is None else isolated,
        }
        self.compute_url = ""
        self.storage_url = ""

    # -- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Emulator:
        self._temporary = None if self._root else tempfile.mkdtemp(prefix="gce-emulator-")
        root = self._root or Path(str(self._temporary))
        self._claim = roots.claim(root)
        held = self._claim.holder
        doomed = [root / "instances", root / "spool"] if self._root else [root]
        self._watchdog = roots.Watchdog(self._claim, doomed)
        self._limits = Limits.open(held.mark) if self._limited else Limits(held.mark)
        self._settings = Settings(root=root.absolute(), mark=held.mark, **self._options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gce-emulator")
        self._thread.start()
        try:
            self._do(self._start(), _START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._do(self._stop(), _CALL_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        leftovers.kill_all(lambda: leftovers.marked(self._settings.mark))
        self._limits.close()
        roots.release(self._settings.root)
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._watchdog.dismiss()
        self._claim.let_go()

    async def _start(self) -> None:
        root = self._settings.root
        self._cloud = Cloud(self._settings, self._limits)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
        )
        spool = root / "spool"
        spool.mkdir(exist_ok=True)
        # The front's port must be known before the server behind it starts, and the other way
        # round for the front: so the socket comes first.
        storage_server = web.Server(lambda request: self._services.storage(request))
        compute_server = web.Server(lambda request: self._services.compute(request))
        metadata_server = web.Server(lambda request: self._services.metadata(request))
        compute = await self._loop.create_server(compute_server, "127.0.0.1", 0)
        storage = await self._loop.create_server(storage_server, "127.0.0.1", 0)
        compute_port = compute.sockets[0].getsockname()[1]
        storage_port = storage.sockets[0].getsockname()[1]
        self._listening = [compute, storage]
        self._web_servers = [compute_server, storage_server, metadata_server]
        self.compute_url = f"http://127.0.0.1:{compute_port}/compute/v1/"
        self.storage_url = f"http://127.0.0.1:{storage_port}"
        self._gcs = GcsServer(root / "buckets", self._settings.mark, self.storage_url)
        front = StorageFront(self._cloud, self._gcs, self._session, spool)
        self._services = Services(self._cloud, front)
        # Chosen once, for all instances: what is said of the port must hold for each. gcloud
        # insists on 22.
        self._ssh_port = usable(addresses(), 22, 2222) or free_port()
        self._cloud.handlers = Handlers(
            metadata=metadata_server,
            compute=compute_server,
            storage=storage_server,
            metadata_port=usable(addresses(), 80),
            compute_port=compute_port,
            storage_port=storage_port,
            ssh_port=self._ssh_port,
        )
        await self._gcs.ready(self._session)

    async def _stop(self) -> None:
        for server in getattr(self, "_listening", []):
            server.close()
        if hasattr(self, "_cloud"):
            await self._cloud.close()
        for handler in getattr(self, "_web_servers", []):
            await handler.shutdown(timeout=0.1)
        if hasattr(self, "_gcs"):
            await self._gcs.stop()
        if hasattr(self, "_session"):
            await self._session.close()

    # -- what tests and commands ask for --------------------------------------------------------

    @property
    def root(self) -> Path:
        return self._settings.root

    @property
    def mark(self) -> str:
        """What all its processes carry in their environment, see ``leftovers.py``."""
        return self._settings.mark

    @property
    def limits(self) -> str:
        """What instances are limited to, in words; or why not."""
        return self._limits.in_words()

    @property
    def project(self) -> str:
        return self._settings.project

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that point clients here: the names the ecosystem uses."""
        return {
            "GOOGLE_CLOUD_PROJECT": self.project,
            "STORAGE_EMULATOR_HOST": self.storage_url,
            "CLOUDSDK_CORE_PROJECT": self.project,
            "CLOUDSDK_CORE_ACCOUNT": ACCOUNT,
            "CLOUDSDK_CONFIG": str(self.root / "gcloud"),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "0",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "1",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": self.compute_url,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": (
                self.compute_url.removesuffix("compute/v1/")
            ),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER": (
                self.compute_url.removesuffix("compute/v1/")
            ),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM": self.compute_url.removesuffix("compute/v1/"),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDBILLING": (
                self.compute_url.removesuffix("compute/v1/")
            ),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_OSLOGIN": self.compute_url.removesuffix("compute/v1/"),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{self.storage_url}/storage/v1/",
            "GCE_EMULATOR_SSH_PORT": str(self._ssh_port),
            "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",
        }

    @property
    def calls(self) -> list[Call]:
        """Every call so far, in the order in which they came in."""
        return list(self._cloud.calls)

    def put_secret(self, name: str, value: str) -> None:
        """Add a version to a secret of Secret Manager."""
        self._loop.call_soon_threadsafe(self._services.secrets.put, name, value)

    def create_bucket(self, name: str) -> None:
        """Create a bucket; one that exists is left as it is."""
        self._do(self._create_bucket(name))

    def instances(self) -> list[dict[str, Any]]:
        """The resources of all instances that exist."""

        async def read() -> list[dict[str, Any]]:
            return [life.instance.resource() for life in self._cloud.lives.values()]

        return self._do(read())

    def instance_directory(self, name: str) -> Path:
        return self._life(name).machine.directory

    def inject(self, fault: Fault) -> None:
        self._loop.call_soon_threadsafe(self._cloud.inject, fault)

    def clear_faults(self) -> None:
        self._loop.call_soon_threadsafe(self._cloud.faults.clear)

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock forward."""
        self._loop.call_soon_threadsafe(self._cloud.clock.advance, seconds)

    def now(self) -> float:
        """Unix seconds by the emulator's clock."""
        return self._cloud.clock.now()

    def power_off(self, name: str) -> None:
        """Cut the power of an instance: no notice, no shutdown script."""
        self._do(self._life(name).power_off())

    def preempt(self, name: str) -> None:
        """Take a spot instance back, with the notice that Compute Engine gives."""
        self._do(self._life(name).preempt())

    def erase(self, name: str) -> None:
        """Remove an instance as if it had never been, without any operation."""
        self._do(self._life(name).erase())

    async def _create_bucket(self, name: str) -> None:
        async with self._session.post(
            f"{self._gcs.url}/storage/v1/b?project={self.project}", json={"name": name}
        ) as answer:
            if answer.status not in (200, 409):
                raise RuntimeError(f"bucket {name!r}: {answer.status} {await answer.text()}")

    def _life(self, name: str) -> Life:
        for (_, known), life in list(self._cloud.lives.items()):
            if known == name:
                return life
        raise KeyError(f"there is no instance {name!r}")

    def _do(self, work: Coroutine[Any, Any, T], seconds: float = _CALL_SECONDS) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)
