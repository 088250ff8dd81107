"""Whole attempts, from the metadata attribute to the deletion, with real processes."""

from __future__ import annotations

from .cloud import md5_of
from .instance import TestInstance


def test_a_run_ends_verified_and_the_instance_deletes_itself(instance: TestInstance) -> None:
    status = instance.run("python train.py; echo to stderr >&2")

    assert (status["end_reason"], status["exit_code"]) == ("succeeded", 0)
    assert status["verified"] and status["missing"] == []
    assert [entry["phase"] for entry in status["phases"]] == [
        "fetching",
        "environment",
        "running",
        "collecting",
    ]
    assert "hello\n" in instance.log and "to stderr\n" in instance.log
    assert instance.plane.deleted
    manifest = instance.bucket.json(instance.paths.manifest)
    listed = {item["name"]: md5_of(item) for item in instance.bucket.items(instance.paths.log_dir)}
    assert listed == {item["name"]: item["md5"] for item in manifest["objects"]}
