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
    "tags": {"items": ["web", "blue"]},
    "networkInterfaces": [{"name": "nic0"}, {"name": "nic1"}],
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
        ("tags.items=web", True),
        ("tags.items = blue", True),
        ("tags.items=green", False),
        ("tags.items != web", False),
        ("tags.items != green", True),
        ("tags.items:bl*", True),
        ("tags.items eq we.", True),
        ("tags.items ne we.", False),
        ("networkInterfaces.name=nic1", True),
        ("networkInterfaces.name=nic2", False),
        ("networkInterfaces.network:*", False),
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


def pages(
    by_scope: dict[str, list[dict[str, str]]], *, lose: bool = False, **query: str
) -> list[list[tuple[str, str]]]:
    """All pages, by scope and name; ``lose``: what a page ends with is gone at the next."""
    found, token = [], ""
    while True:
        page, following = select(by_scope, {"maxResults": "3", "pageToken": token, **query})
        found.append([(scope, resource["name"]) for scope, resource in page])
        if following is None:
            return found
        token = following
        if lose:
            by_scope[page[-1][0]].remove(page[-1][1])


@pytest.mark.parametrize("lose", [False, True])
def test_pages_together_are_the_whole_list(lose: bool) -> None:
    by_scope = {
        scope: [{"name": f"vm-{number}"} for number in range(count)]
        for scope, count in (("zones/a", 4), ("zones/b", 0), ("zones/c", 3))
    }
    whole = [(scope, each["name"]) for scope in by_scope for each in by_scope[scope]]

    assert [len(page) for page in pages(by_scope, lose=lose)] == [3, 3, 1]
    assert lose or [each for page in pages(by_scope) for each in page] == whole


def test_the_youngest_come_first_when_asked_for_even_when_some_go() -> None:
    machines = [
        {"name": f"vm-{number}", "creationTimestamp": f"2026-01-0{number % 3 + 1}"}
        for number in range(7)
    ]
    found = pages({"": machines}, lose=True, orderBy="creationTimestamp desc")

    assert [name for page in found for _, name in page] == [
        *("vm-5", "vm-2", "vm-4", "vm-1", "vm-6", "vm-3", "vm-0")
    ]


@pytest.mark.parametrize("token", ["b2Zmc2V0PTI=", "x", "WzFd", "ü"])
def test_a_page_token_of_nobody_is_a_400(token: str) -> None:
    with pytest.raises(ApiError, match="pageToken"):
        select({}, {"pageToken": token})


@pytest.mark.parametrize("limit", ["501", "-1", "²", "x", ""])
def test_a_page_of_no_size_is_a_400(limit: str) -> None:
    with pytest.raises(ApiError, match="maxResults"):
        select({}, {"maxResults": limit})


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
