"""The files of a run, straight off its instance: what did not, or not yet, reach the bucket.

Every file is hashed on both sides while it travels. An interrupted rescue goes on where it
stopped. Read as root there (by sudo), since the agent's files are root's; so not by SFTP, which
would have the login's rights.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gce_backend.errors import SshError, SshUnavailable
from gce_backend.ssh import Connection
from gce_backend.ssh_frames import STATE_DIRECTORY, command, frames

_PIECE = 1 << 20
_PART = ".part"

#: Lists the agent's files: what the training wrote, what was on its way to the bucket under its
#: object's name, log and journal. Not what can be had again: environment, programs, the bundle.
LIST = """
import json, os, stat, struct, sys
root = os.path.realpath(sys.argv[1])
LEFT_OUT = {"environment", "agent.pyz", "job.pyz", "bundle.tar.gz", "state.json", "spool"}
def send(record):
    data = json.dumps(record).encode()
    os.write(1, struct.pack(">I", len(data)) + data)
def file(path, name):
    try:
        found = os.lstat(path)
    except OSError:
        return
    if stat.S_ISREG(found.st_mode):
        send({"path": path, "name": name, "size": found.st_size})
spool = os.path.join(root, "spool")
entries = {}
if os.path.exists(os.path.join(spool, "index.jsonl")):
    with open(os.path.join(spool, "index.jsonl"), errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            entries[entry["bucket"], entry["name"]] = entry
for entry in entries.values():
    if not entry["deleted"]:
        file(os.path.join(spool, "%08d" % entry["number"]), "bucket/" + entry["name"])
for directory, names, files in os.walk(root):
    if directory == root:
        names[:] = [name for name in names if name not in LEFT_OUT]
        files = [name for name in files if name not in LEFT_OUT and not name.endswith(".pieces")]
    for name in files:
        path = os.path.join(directory, name)
        file(path, os.path.relpath(path, root))
"""

#: Sends files, each from an offset on, and the SHA-256 of each as a whole.
SEND = """
import hashlib, json, os, struct, sys
def send(kind, data=b""):
    frame = struct.pack(">I", len(data) + 1) + kind + data
    while frame:
        frame = frame[os.write(1, frame):]
for line in sys.stdin.buffer:
    wanted = json.loads(line)
    digest, at = hashlib.sha256(), 0
    try:
        with open(wanted["path"], "rb") as source:
            end = os.fstat(source.fileno()).st_size
            while at < end:
                data = source.read(min(1 << 18, end - at))
                if not data:
                    break
                digest.update(data)
                start, at = max(0, wanted["offset"] - at), at + len(data)
                send(b"d", data[start:])
    except OSError as error:
        send(b"x", str(error).encode())
        continue
    send(b"e", digest.hexdigest().encode())
"""


@dataclass(frozen=True)
class RemoteFile:
    """``path`` on the instance, ``name`` below the directory it is rescued into."""

    path: str
    name: str
    size: int


@dataclass(frozen=True)
class Rescued:
    """What a rescue brought. ``transferred``: bytes, without those an earlier one had brought."""

    files: int
    size: int
    transferred: int


def rescue(
    connection: Connection, directory: Path, progress: Callable[[str], None] = lambda _: None
) -> Rescued:
    """Copy the run's files into ``directory``, which an earlier rescue may have begun to fill.

    Args:
        progress: told of every file once it is there and proven.

    Raises:
        SshUnavailable: the connection broke; what is there already stays, and counts next time.
        SshError: a file could not be read, or did not come as it is; the others are there.
    """
    files = list(_listed(connection))
    transferred = 0
    wrong: dict[str, str] = {}
    wanted = files
    for offset_of in (_local_size, lambda _: 0):
        wrong, count = _fetch(connection, directory, wanted, offset_of, progress)
        transferred += count
        wanted = [file for file in wanted if file.name in wrong]
        if not wanted:
            break
    if wrong:
        lines = "\n".join(f"  {name}: {why}" for name, why in sorted(wrong.items())[:20])
        raise SshError(
            f"{len(wrong)} of {len(files)} files of instance {connection.instance!r} could not be "
            f"rescued; the others are in {directory}:\n{lines}"
        )
    return Rescued(len(files), sum(file.size for file in files), transferred)


def _listed(connection: Connection) -> Iterator[RemoteFile]:
    channel = connection.start(command(LIST, STATE_DIRECTORY, as_root=True))
    count = 0
    for frame in frames(channel, connection.instance):
        record = json.loads(frame)
        name = PurePosixPath(record["name"])
        # The names are the training's; they must not lead out of the directory.
        if not name.is_absolute() and ".." not in name.parts:
            yield RemoteFile(record["path"], str(name), record["size"])
            count += 1
    if not count:
        said = channel.recv_stderr(2000).decode("utf-8", "replace").strip()
        raise SshError(
            f"instance {connection.instance!r} has no files of a run in /var/lib/mlflow-gce"
            f"{f': {said}' if said else ''}"
        )


def _fetch(
    connection: Connection,
    directory: Path,
    files: Iterable[RemoteFile],
    offset_of: Callable[[Path], int],
    progress: Callable[[str], None],
) -> tuple[dict[str, str], int]:
    """All ``files`` in one stream; what is wrong, by name, and how many bytes came."""
    wanted = [(file, directory / file.name) for file in files]
    # All are asked for at once: a thousand small files cost no thousand round trips.
    offsets = [min(offset_of(target), file.size) for file, target in wanted]
    channel = connection.start(command(SEND, as_root=True))
    orders = b"".join(
        json.dumps({"path": file.path, "offset": offset}).encode() + b"\n"
        for (file, _), offset in zip(wanted, offsets, strict=True)
    )
    threading.Thread(target=_order, args=(channel, orders), daemon=True).start()
    answers = frames(channel, connection.instance)
    wrong: dict[str, str] = {}
    count = 0
    for (file, target), offset in zip(wanted, offsets, strict=True):
        part = _begun(target)
        why, received = _receive(answers, part, offset, connection.instance)
        count += received
        if why:
            wrong[file.name] = why
        else:
            os.replace(part, target)
            progress(file.name)
    return wrong, count


def _order(channel: Any, orders: bytes) -> None:
    try:
        channel.sendall(orders)
        channel.shutdown_write()
    except OSError:
        return  # the connection broke; whoever reads the answers finds out


def _receive(answers: Iterator[bytes], part: Path, offset: int, instance: str) -> tuple[str, int]:
    """One file's answer into ``part``; why it is wrong (or ""), and how many bytes came."""
    digest, count = hashlib.sha256(), 0
    with part.open("r+b" if part.exists() else "w+b") as file:
        file.truncate(offset)
        while data := file.read(_PIECE):
            digest.update(data)
        for answer in answers:
            kind, data = answer[:1], answer[1:]
            if kind == b"d":
                file.write(data)
                digest.update(data)
                count += len(data)
            elif kind == b"x":
                return data.decode("utf-8", "replace"), count
            else:
                same = data.decode() == digest.hexdigest()
                return ("" if same else "its SHA-256 is another one here than there"), count
    raise SshUnavailable(f"the SSH connection to {instance!r} broke off")


def _begun(target: Path) -> Path:
    """Where a file is put together; what an earlier rescue brought of it is there."""
    part = _part_of(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        os.replace(target, part)
    return part


def _part_of(target: Path) -> Path:
    return target.with_name(target.name + _PART)


def _local_size(target: Path) -> int:
    for file in (target, _part_of(target)):
        if file.exists():
            return file.stat().st_size
    return 0
