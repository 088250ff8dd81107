"""A submission found again by its run's tags; what is missing there is not made up."""

import dataclasses
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


def test_whoever_finds_it_again_counts_with_the_same_numbers():
    made = dataclasses.replace(
        submission(), usd_per_hour=0.116349315, created_at=1764000000.1234, deadline=1764090000.6
    )

    assert submission(**made.tags()) == made
