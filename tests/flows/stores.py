"""Tracking stores that a test takes away and brings back: a file, and servers behind a door."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from mlflow_server import MlflowServer

from gce_backend.emulator.ports import free_port

_START_SECONDS = 150


class File:
    """A sqlite file; it is away when it lies elsewhere."""

    def __init__(self, file: Path) -> None:
        self.uri = f"sqlite:///{file}"
        self._file, self._elsewhere = file, file.with_suffix(".away")

    def down(self) -> None:
        self._file.rename(self._elsewhere)

    def up(self) -> None:
        # Whatever made a file meanwhile must not have; its tables would be missed.
        assert not self._file.exists(), "somebody made a new store in place of the one away"
        self._elsewhere.rename(self._file)


class Door:
    """A TCP proxy on a port of its own: shut, it refuses connections and breaks off the open."""

    def __init__(self, upstream: tuple[str, int], address: str) -> None:
        self._upstream, self._address = upstream, address
        self._port = 0
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.up()

    @property
    def uri(self) -> str:
        return f"http://{self._address}:{self._port}"

    def up(self) -> None:
        if self._listener is not None:
            return
        listener = socket.create_server((self._address, self._port), backlog=64)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def down(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            connections, self._open = self._open, []
        for one in [*connections, *([listener] if listener else [])]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(self._upstream, timeout=30)
            except OSError:
                return
            far.settimeout(None)
            with self._lock:
                if self._listener is not listener:
                    near.close()
                    far.close()
                    return
                self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def mlflow_server(directory: Path, backend_store_uri: str) -> Iterator[tuple[str, int]]:
    """A real `mlflow server`; yields its address."""
    server = MlflowServer(directory, backend_store_uri)
    try:
        server.start(_START_SECONDS)
        yield "127.0.0.1", server.port
    finally:
        server.kill()


def postgres_binaries() -> Path | None:
    """Debian's: the newest version's directory."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A throw-away PostgreSQL cluster on a loopback port; yields its URI."""
    binaries = postgres_binaries()
    assert binaries is not None
    directory = Path(tempfile.mkdtemp(prefix="mlflow-gce-postgres-", dir="/tmp"))
    port = free_port()
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(directory, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    cluster = directory / "cluster"

    def call(*words: str) -> None:
        with (directory / "output").open("ab") as output:  # a pipe would be kept by the server
            subprocess.run([*as_user, *words], check=True, cwd="/", stdout=output, stderr=output)

    try:
        call(str(binaries / "initdb"), "-D", str(cluster), "-U", "mlflow", "-A", "trust")
        options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [str(binaries / "pg_ctl"), "-D", str(cluster), "-w", "-t", "60"]
        call(*control, "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            call(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory)


def address_of_this_machine() -> str:
    """One that is not loopback, as of a server elsewhere; the host's name where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
