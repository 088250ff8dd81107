"""A submission found again by its run's tags; what is missing there is not made up."""

import types

from gce_backend.submission import Submission

RUN = "0" * 32
TAGS = {
    "gce.run": f"gs://b/mlflow-gce/runs/{RUN}",
    "gce.project": "p",
    "gce.zone": "z",
    "gce.instance": f"mlflow-{RUN}-1",
}


def submission(**tags):
    run = types.SimpleNamespace(
        info=types.SimpleNamespace(run_id=RUN),
        data=types.SimpleNamespace(tags={**TAGS, **tags}),
    )
    return Submission.from_run(run, "sqlite://")


def test_a_missing_deadline_has_not_passed():
    found = submission()

    assert found.deadline == float("inf")
    assert found.deadline_text() == "its deadline"
    assert found.attempt == 1


def test_what_is_written_is_read_back():
    found = submission(**{"gce.attempt": "3", "gce.deadline": "1764000000"})

    again = submission(**found.tags())

    assert again == found
    assert again.attempt == 3
