from __future__ import annotations

import pytest

from gce_backend.emulator.errors import ApiError
from gce_backend.emulator.filters import compile_filter
from gce_backend.emulator.lists import select, selection

VM = {
    "name": "train-1",
    "status": "RUNNING",
    "labels": {"owner": "ann", "run": "a1"},
    "scheduling": {"preemptible": False},
    "diskSizeGb": "50",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("name=train-1", True),
        ("name = train", False),
        ("name != train-2", True),
        ("labels.owner:*", True),
        ("labels.nobody:*", False),
        ("-labels.nobody:*", True),
        ("NOT labels.owner=ann", False),
        ("labels.owner=ann AND status=RUNNING", True),
        ("(labels.owner = ann) (status = STOPPING)", False),
        ("labels.owner=bob OR labels.run=a1", True),
        ('(name = "train-1") AND (labels.owner=bob OR labels.run=a1)', True),
        ("scheduling.preemptible = false", True),
        ("diskSizeGb > 9", True),
        ("diskSizeGb <= 49", False),
        ("name:train*", True),
        ("name eq train-.*", True),
        ("name eq train", False),
        (r'name ne ".*\btrain\b.*"', False),
    ],
)
def test_a_filter_keeps_what_it_says(text: str, expected: bool) -> None:
    assert compile_filter(text)(VM) is expected


@pytest.mark.parametrize("text", ["name", "name =", "(name=a", "name ~ a", "= a", 'name="a'])
def test_an_unreadable_filter_is_a_400(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        compile_filter(text)
    assert caught.value.code == 400


def test_pages_together_are_the_whole_list() -> None:
    items = [{"name": f"vm-{number}"} for number in range(7)]
    found, token = [], ""
    while True:
        page, following = select(items, {"maxResults": "3", "pageToken": token})
        found += page
        if following is None:
            break
        token = following

    assert found == items


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("name", {"name": "train-1"}),
        ("labels/owner,name", {"labels": {"owner": "ann"}, "name": "train-1"}),
        ("labels(owner,run)", {"labels": {"owner": "ann", "run": "a1"}}),
        ("labels/*,name", {"labels": {"owner": "ann", "run": "a1"}, "name": "train-1"}),
    ],
)
def test_fields_keep_what_they_name(fields: str, expected: object) -> None:
    assert selection(fields)(VM) == expected
