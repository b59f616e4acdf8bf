"""Group commit: each item is written exactly once, in order, and its future gets the failure of its group."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing

import pytest

from tests.support.group_commit import Writer
from worker.group_commit import GroupCommit


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def submit(writer: Writer) -> Iterator[Callable[..., list[BaseException | None]]]:
    """A function that submits items while the first is being written, and returns the error of each."""

    def all_of(first: int, *others: int, size: int = 1) -> list[BaseException | None]:
        futures: list[Future[None]] = [commit.submit(first, size)]
        assert writer.begun.wait(10)
        futures += [commit.submit(item, size) for item in others]
        writer.go_on.set()
        return [future.exception(10) for future in futures]

    with closing(GroupCommit[int](writer, 3)) as commit:
        yield all_of
        writer.go_on.set()


def test_items_that_arrive_during_a_write_are_written_together_in_order(
    writer: Writer, submit: Callable[..., list[None]]
) -> None:
    assert submit(0, 1, 2, 3, 4, 5) == [None] * 6
    assert writer.groups == [[0], [1, 2, 3], [4, 5]]


def test_an_item_larger_than_a_group_is_written_alone(writer: Writer, submit: Callable[..., list[None]]) -> None:
    assert submit(1, 2, size=100) == [None, None]
    assert writer.groups == [[1], [2]]


def test_a_failed_write_fails_the_futures_of_its_group_only(
    writer: Writer, submit: Callable[..., list[BaseException | None]]
) -> None:
    assert [type(error) for error in submit(1, 2, 13, 3, 4)] == [type(None), *[RuntimeError] * 3, type(None)]
    assert writer.groups == [[1], [2, 13, 3], [4]]
