"""Unpacking the project, and finding what a failed run left."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from gce_backend.agent import bundle
from gce_backend.agent.errors import AgentError


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_files_links_and_modes_are_unpacked(tmp_path: Path) -> None:
    script = member("bin/run.sh")
    script.mode = 0o755
    source = archive(
        tmp_path / "a.tar.gz",
        (script, b"#!/bin/sh\n"),
        (member("run", tarfile.SYMTYPE, "bin/run.sh"), b""),
    )
    bundle.unpack(source, tmp_path / "work")

    assert (tmp_path / "work/run").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "work/bin/run.sh").stat().st_mode & 0o111


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil"),
        member("/etc/evil"),
        member("a/../../evil"),
        member("link", tarfile.SYMTYPE, "../../evil"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "../evil"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda one: f"{one.name}->{one.linkname}",
)
def test_what_leads_out_of_the_project_is_refused_whole(
    tmp_path: Path, bad: tarfile.TarInfo
) -> None:
    source = archive(tmp_path / "a.tar.gz", (member("good"), b"x"), (bad, b""))

    with pytest.raises(AgentError, match="the bundle's"):
        bundle.unpack(source, tmp_path / "work")

    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "evil").exists()


def test_a_damaged_archive_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")

    with pytest.raises(AgentError, match="cannot be unpacked"):
        bundle.unpack(tmp_path / "a.tar.gz", tmp_path / "work")


def test_leftovers_are_what_is_new_or_changed_smallest_first(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", (member("same"), b"1"), (member("changed"), b"2"))
    work = tmp_path / "work"
    bundle.unpack(source, work)
    (work / "changed").write_bytes(b"other")
    (work / "big").write_bytes(b"x" * 200)
    (work / "new").write_bytes(b"x" * 50)
    for skipped in ("__pycache__", ".cache", ".venv/lib"):
        (work / skipped).mkdir(parents=True)
        (work / skipped / "file").write_bytes(b"x")
    (work / "link").symlink_to("/etc/passwd")

    kept, left_out = bundle.leftovers(work, 100)

    assert [path.name for path in kept] == ["changed", "new"]
    assert [path.name for path in left_out] == ["big"]
