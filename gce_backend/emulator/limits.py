"""Cores and memory of a machine type as limits of the kernel: Linux control groups, v1 or v2.

Every emulator has a group of its own, every instance one inside it. Cores are given as a set of
this machine's, so that the guest also counts them (``nproc``); a machine type with as many cores
as this machine, or more, gets them all. Where groups cannot be made there are no limits.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import leftovers

_CORES, _MEMORY = "cpuset", "memory"  # the controllers, in both versions


@dataclass(frozen=True)
class Hierarchy:
    """Where groups with one controller are made.

    Attributes:
        parent: the group that ours is made in: with v1 the one this process is in, whose own
            limits go on to hold. With v2 that one may hold processes or groups, not both, so it
            is the topmost.
    """

    controller: str
    parent: Path
    version: int


def hierarchies() -> list[Hierarchy]:
    """One for each controller this machine has."""
    own = _own_groups()
    found = []
    for controller in (_CORES, _MEMORY):
        for root, mount, version, options in _mounts():
            if version == 1 and controller in options:
                group = Path(own.get(controller, "/"))
                inside = group.relative_to(root) if group.is_relative_to(root) else Path()
                found.append(Hierarchy(controller, mount / inside, 1))
            elif version == 2 and controller in _words(mount / "cgroup.controllers"):
                found.append(Hierarchy(controller, mount, 2))
    return found


def places(mark: str, found: Sequence[Hierarchy]) -> list[Path]:
    """The directories that are an emulator's groups, each once."""
    return list(dict.fromkeys(each.parent / f"gce-emulator-{mark}" for each in found))


@dataclass
class Limits:
    """The groups of one emulator.

    Attributes:
        refused: controller -> why there is no such limit.
    """

    mark: str
    refused: dict[str, str] = field(default_factory=dict)
    _parents: dict[str, Path] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)
    _cores: Counter[int] = field(default_factory=Counter)  # core -> instances that have it
    _given: dict[str, list[int]] = field(default_factory=dict)  # instance -> its cores

    @classmethod
    def open(cls, mark: str, found: Sequence[Hierarchy] | None = None) -> Limits:
        """Make the emulator's groups where this machine lets it."""
        limits = cls(mark)
        limits.refused = dict.fromkeys((_CORES, _MEMORY), "this machine has no such control groups")
        for each in hierarchies() if found is None else found:
            try:
                limits._open(each)
            except OSError as error:
                limits.refused[each.controller] = str(error)
            else:
                del limits.refused[each.controller]
        for core in os.sched_getaffinity(0) if limits._parents else ():
            limits._cores[core] = 0
        return limits

    def _open(self, hierarchy: Hierarchy) -> None:
        [group] = places(self.mark, [hierarchy])
        if hierarchy.version == 2:
            _write(hierarchy.parent / "cgroup.subtree_control", f"+{hierarchy.controller}")
        group.mkdir(exist_ok=True)
        if hierarchy.version == 2:
            _write(group / "cgroup.subtree_control", f"+{hierarchy.controller}")
        elif hierarchy.controller == _CORES:
            _inherit_cores(group)
        self._parents[hierarchy.controller] = group
        self._versions[hierarchy.controller] = hierarchy.version

    def in_words(self) -> str:
        """What instances are limited to, for the person who starts the emulator."""
        names = {_CORES: "cores", _MEMORY: "memory"}
        held = " and ".join(names[each] for each in names if each in self._parents)
        missing = "; ".join(
            f"no limit of {names[each]}: {why}" for each, why in self.refused.items()
        )
        told = f"instances have the {held} of their machine type" if held else ""
        return "; ".join(part for part in (told, missing) if part) or "instances have no limits"

    def make(self, instance: str, cores: int, memory_bytes: int) -> list[Path]:
        """The groups that all processes of ``instance`` are to be in.

        Raises:
            OSError: the kernel refuses one.
        """
        groups = {}
        if _MEMORY in self._parents:
            group = groups[_MEMORY] = self._make(_MEMORY, instance)
            first = self._versions[_MEMORY] == 1
            _write(group / ("memory.limit_in_bytes" if first else "memory.max"), str(memory_bytes))
            # No swap beyond that; there is no such file where the kernel does not count swap.
            swap = (
                ("memory.memsw.limit_in_bytes", memory_bytes) if first else ("memory.swap.max", 0)
            )
            with suppress(OSError):
                _write(group / swap[0], str(swap[1]))
        if _CORES in self._parents and cores < len(self._cores):
            group = groups[_CORES] = self._make(_CORES, instance)
            if self._versions[_CORES] == 1:
                _inherit_cores(group)
            _write(group / "cpuset.cpus", ",".join(map(str, self._take(instance, cores))))
        return list(dict.fromkeys(groups.values()))

    def _make(self, controller: str, instance: str) -> Path:
        group = self._parents[controller] / instance
        group.mkdir(exist_ok=True)
        return group

    def _take(self, instance: str, cores: int) -> list[int]:
        """The cores that the fewest instances have."""
        chosen = sorted(self._cores, key=lambda core: (self._cores[core], core))[:cores]
        self._given[instance] = chosen
        self._cores.update(chosen)
        return chosen

    def remove(self, instance: str) -> None:
        """The groups of an instance whose processes have ended."""
        self._cores.subtract(self._given.pop(instance, []))
        for parent in dict.fromkeys(self._parents.values()):
            leftovers.remove_group(parent / instance)

    def close(self) -> None:
        for parent in dict.fromkeys(self._parents.values()):
            leftovers.remove_group(parent)


def joining(groups: Sequence[Path], arguments: Sequence[str]) -> Sequence[str]:
    """``arguments``, run in ``groups`` from the first instruction on: nothing forks beside them."""
    if not groups:
        return arguments
    joins = "".join(f"echo 0 >{shlex.quote(str(group / 'cgroup.procs'))}; " for group in groups)
    return ["/bin/sh", "-c", f'{{ {joins}}} 2>/dev/null; exec "$@"', "sh", *arguments]


def _inherit_cores(group: Path) -> None:
    """A new group of v1 has neither cores nor memory nodes, and takes no process before it has."""
    for name in ("cpuset.mems", "cpuset.cpus"):
        _write(group / name, (group.parent / name).read_text())


def _write(file: Path, text: str) -> None:
    # Opened to write only: a file that is not there is no group's, and is not to be made.
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _own_groups() -> dict[str, str]:
    """Controller of v1 -> the group this process is in (cgroups(7), ``/proc/[pid]/cgroup``)."""
    own = {}
    for line in _lines("/proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), group))
    return own


def _mounts() -> list[tuple[str, Path, int, list[str]]]:
    """(root inside the hierarchy, mount point, version, options) of each (proc(5), mountinfo)."""
    found = []
    for line in _lines("/proc/self/mountinfo"):
        place, _, kind = line.partition(" - ")
        fields, (name, _, options) = place.split(), kind.split(maxsplit=2)
        version = {"cgroup": 1, "cgroup2": 2}.get(name)
        if version is not None:
            found.append((fields[3], Path(fields[4]), version, options.split(",")))
    return found


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []
