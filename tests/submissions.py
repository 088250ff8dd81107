"""A submitted run, for tests that no cloud is asked in."""

from typing import Any

from gce_backend.agent.paths import RunPaths
from gce_backend.submission import Submission


def submission(**changes: Any) -> Submission:
    """The first attempt of a run."""
    usual = {
        "run_id": "r",
        "project": "p",
        "zone": "z",
        "instance": "mlflow-r-1",
        "bucket": "b",
        "paths": RunPaths("x", "r"),
        "tracking_uri": "",
    }
    return Submission(**{**usual, **changes})
