"""Tests of the story that peers are compared with: pure functions, no server."""

from collections import Counter

import pytest

from tests.benchmarks.peers.story import DUPLICATED, LATE, Story, Verdict, compare, make_story
from tests.benchmarks.peers.versions import STRIPE, WORKOS, Form, Version

EVENTS = 12_000
TRUTH = {1: 4, 2: 7, 3: None, 4: None}


@pytest.fixture(scope="module")
def story() -> Story:
    return make_story(EVENTS, seed=3)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({1: 4, 2: 7}, Verdict(wrong=0, lost=0, resurrected=0)),
        ({1: 3, 2: 7}, Verdict(wrong=1, lost=0, resurrected=0)),
        ({1: 5, 2: 6}, Verdict(wrong=2, lost=0, resurrected=0)),
        ({1: 4}, Verdict(wrong=0, lost=1, resurrected=0)),
        ({1: 4, 2: 7, 3: 0}, Verdict(wrong=0, lost=0, resurrected=1)),
        ({1: 0, 3: 9, 4: 9}, Verdict(wrong=1, lost=1, resurrected=2)),
        ({}, Verdict(wrong=0, lost=2, resurrected=0)),
    ],
)
def test_rows_are_wrong_lost_or_resurrected(found: dict[int, int], verdict: Verdict) -> None:
    assert compare(TRUTH, found) == verdict


def test_a_row_of_an_unknown_object_is_a_fault_of_the_benchmark() -> None:
    with pytest.raises(ValueError, match="1 rows are of objects that were never sent"):
        compare(TRUTH, {1: 4, 2: 7, 5: 0})


def test_every_version_is_delivered_and_a_tenth_twice(story: Story) -> None:
    times = Counter(story.deliveries)
    assert abs(len(times) - EVENTS) < EVENTS * 0.05
    assert Counter(times.values()).keys() == {1, 2}
    assert sum(number == 2 for number in times.values()) == round(len(times) * DUPLICATED)


def test_one_in_a_hundred_comes_after_a_newer_one_and_some_of_them_after_the_delete(story: Story) -> None:
    late, late_after_a_delete = set[Version](), set[Version]()
    newest: dict[int, Version] = {}
    seen = set[Version]()
    for version in story.deliveries:
        before = newest.setdefault(version.object, version)
        if version not in seen and before.number > version.number:
            late.add(version)
            late_after_a_delete |= {version} if before.deleted else set()
        newest[version.object] = max(before, version, key=lambda one: one.number)
        seen.add(version)
    assert len(late) == round(len(seen) * LATE)
    assert late_after_a_delete


def test_the_truth_is_the_last_version_of_each_object(story: Story) -> None:
    newest: dict[int, Version] = {}
    for version in story.deliveries:
        newest[version.object] = max(newest.get(version.object, version), version, key=lambda one: one.number)
    assert story.truth == {place: None if one.deleted else one.number for place, one in newest.items()}
    assert {number is None for number in story.truth.values()} == {True, False}


@pytest.mark.parametrize("form", [WORKOS, STRIPE])
def test_a_version_is_a_different_event_with_its_number_as_the_name(form: Form) -> None:
    bodies = {form.body(Version(7, number)) for number in range(3)}
    assert len(bodies) == 3
    assert all(f'"name": "{number}"'.encode() in form.body(Version(7, number)) for number in range(3))
