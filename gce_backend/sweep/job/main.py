"""``python3 job.pyz``: the supervisor; ``python3 job.pyz job RESULT``: the job itself."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from typing import Any

from .run import run
from .supervise import supervise


def main() -> int:
    """The exit code: 0 only when the task function returned."""
    archive = sys.argv[0]
    with zipfile.ZipFile(archive) as files:
        facts = json.loads(files.read("facts.json"))
    if sys.argv[1:2] == ["job"]:
        return run(archive, translated(facts, sys.argv[3]), sys.argv[2])
    return supervise(archive, translated(facts, os.getcwd()))


def translated(facts: dict[str, Any], root: str) -> dict[str, Any]:
    """``facts`` with the client's paths as they are here, where the project is at ``root``."""

    def here(path: str) -> str:
        inside = path == facts["root"] or path.startswith(facts["root"].rstrip("/") + "/")
        return os.path.normpath(root + "/" + path[len(facts["root"]) :]) if inside else path

    main = facts["main"]
    if main is not None:
        main = {**main, "path": here(main["path"])}
    paths = [here(path) for path in facts["paths"]]
    return {**facts, "main": main, "cwd": here(facts["cwd"]), "paths": paths, "here": root}
