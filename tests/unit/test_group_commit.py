"""Group commit: each item is written exactly once, and its caller gets its result or its failure."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.support.group_commit import Writer
from worker.group_commit import GroupCommit


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def commit(writer: Writer) -> Iterator[GroupCommit[int, int]]:
    with closing(GroupCommit(writer, 3)) as made:
        yield made
        writer.go_on.set()


@pytest.fixture
def hand_over(writer: Writer, commit: GroupCommit[int, int]) -> Iterator[Callable[..., list[int | BaseException]]]:
    """A function that hands over items while the first is being written; returns the result of each call."""

    def all_of(*items: int, size: int = 1) -> list[int | BaseException]:
        calls = []
        for place, item in enumerate(items):
            calls.append(pool.submit(commit, item, size))
            assert writer.begun.wait(10)
            while commit._queue.qsize() < place:
                threading.Event().wait(0.001)
        writer.go_on.set()
        return [call.exception(10) or call.result() for call in calls]

    with ThreadPoolExecutor() as pool:
        yield all_of


def test_items_that_arrive_during_a_write_are_written_together_in_order(
    writer: Writer, hand_over: Callable[..., list[int]]
) -> None:
    assert hand_over(0, 1, 2, 3, 4, 5) == [0, 10, 20, 30, 40, 50]
    assert writer.groups == [[0], [1, 2, 3], [4, 5]]


def test_an_item_larger_than_a_group_is_written_alone(writer: Writer, hand_over: Callable[..., list[int]]) -> None:
    assert hand_over(1, 2, size=100) == [10, 20]
    assert writer.groups == [[1], [2]]


def test_a_failed_write_fails_the_calls_of_its_group_only(
    writer: Writer, hand_over: Callable[..., list[int | BaseException]]
) -> None:
    assert [type(got) for got in hand_over(1, 2, 13, 3, 4)] == [int, RuntimeError, RuntimeError, RuntimeError, int]
    assert writer.groups == [[1], [2, 13, 3], [4]]
