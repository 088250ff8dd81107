"""Which of a run's numbers its summary shows."""

from gce_backend.summary import headline

OF_CLASSES = {f"class_accuracy/{digit}": 99.0 for digit in range(10)}


def test_a_group_of_numbers_does_not_hide_the_accuracy():
    shown = list(headline({**OF_CLASSES, "train_loss": 0.5, "test_accuracy": 99.4}))

    assert shown[:2] == ["test_accuracy", "train_loss"]
    assert len(shown) == 8


def test_a_trainer_that_has_groups_alone_is_shown_them():
    assert list(headline({"val/loss": 0.5, "val/accuracy": 0.9})) == ["val/accuracy", "val/loss"]


def test_what_the_backend_logs_itself_is_none_of_the_trainers():
    assert headline({"system/cpu_utilization_percentage": 90.0, "gce/cost_usd": 0.002}) == {}
