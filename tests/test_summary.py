"""Which of a run's numbers its summary shows."""

import pytest

from gce_backend.agent.paths import RunPaths
from gce_backend.follow import End
from gce_backend.lifecycle import EndReason
from gce_backend.storage import Storage
from gce_backend.submission import Submission
from gce_backend.summary import headline, result_of

OF_CLASSES = {f"class_accuracy/{digit}": 99.0 for digit in range(10)}


def test_a_group_of_numbers_does_not_hide_the_accuracy():
    shown = list(headline({**OF_CLASSES, "train_loss": 0.5, "test_accuracy": 99.4}))

    assert shown[:2] == ["test_accuracy", "train_loss"]
    assert len(shown) == 8


def test_a_trainer_that_has_groups_alone_is_shown_them():
    assert list(headline({"val/loss": 0.5, "val/accuracy": 0.9})) == ["val/accuracy", "val/loss"]


def test_what_the_backend_logs_itself_is_none_of_the_trainers():
    assert headline({"system/cpu_utilization_percentage": 90.0, "gce/cost_usd": 0.002}) == {}


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (EndReason.EXITED_NONZERO, 143),
        (EndReason.PREEMPTED, 1),
        (EndReason.DEADLINE, 1),
        (EndReason.CANCELLED, 130),
        (EndReason.SUCCEEDED, 0),
    ],
)
def test_only_an_entry_point_that_ended_by_itself_lends_its_exit_code(bucket, reason, code):
    """Whatever else ends a run ends the entry point by SIGTERM, which is nobody's exit code."""
    submission = Submission(
        run_id="0" * 32,
        bucket=bucket,
        paths=RunPaths("mlflow-gce", "0" * 32),
        project="p",
        zone="z",
        instance="i",
        tracking_uri="sqlite://",
        deadline=0.0,
        created_at=0.0,
    )

    result = result_of(submission, End({"exit_code": 143}, reason), "", Storage(bucket))

    assert result.exit_code == code
