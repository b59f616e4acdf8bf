"""Group commit in an event loop: each item is written once, and its caller gets the result or the error."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from uvloop import new_event_loop

from tests.support.group_commit import Writer
from tests.support.processes import eventually
from webhooks.group_commit import AsyncGroupCommit, run_inline

Outcome = int | BaseException


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """The loop of production. The test fails if the loop has to report an error that nobody took."""
    reported: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=new_event_loop) as made:
        made.get_loop().set_exception_handler(lambda _loop, context: reported.append(context))
        yield made
    gc.collect()
    assert reported == []


def commit_of(writer: Callable[[list[int]], Sequence[int]], seconds: float = 10.0) -> AsyncGroupCommit[int, int]:
    return AsyncGroupCommit(writer, lambda: None, max_items=3, seconds=seconds)


async def waiting(commit: AsyncGroupCommit[int, int], writer: Writer, *items: int) -> list["asyncio.Task[int]"]:
    """Hand over items; on return the first is being written, and the others wait."""
    tasks = []
    for item in items:
        tasks.append(asyncio.create_task(run_inline(partial(commit, item))))
        assert await asyncio.to_thread(writer.begun.wait, 10)
    await asyncio.sleep(0)
    return tasks


async def outcomes(commit: AsyncGroupCommit[int, int], writer: Writer, *items: int) -> list[Outcome]:
    tasks = await waiting(commit, writer, *items)
    writer.go_on.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.long
def test_items_that_arrive_during_a_write_are_written_together_in_order(writer: Writer, runner: asyncio.Runner) -> None:
    assert runner.run(outcomes(commit_of(writer), writer, 0, 1, 2, 3, 4, 5)) == [0, 10, 20, 30, 40, 50]
    assert writer.groups == [[0], [1, 2, 3], [4, 5]]
    assert {name.rpartition("_")[0] for name in writer.threads} == {"group-commit"}


def test_a_failed_write_fails_the_items_of_its_group_only(writer: Writer, runner: asyncio.Runner) -> None:
    found = runner.run(outcomes(commit_of(writer), writer, 1, 2, 13, 3, 4))
    assert [type(outcome) for outcome in found] == [int, RuntimeError, RuntimeError, RuntimeError, int]
    assert writer.groups == [[1], [2, 13, 3], [4]]


@pytest.mark.long
def test_an_item_whose_time_is_up_before_its_write_began_is_not_written(writer: Writer, runner: asyncio.Runner) -> None:
    commit = commit_of(writer, seconds=0.05)

    async def late() -> tuple[list[Outcome], int]:
        tasks = await waiting(commit, writer, 1, 2, 3, 4, 5)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        writer.go_on.set()
        commit._seconds = 10.0
        return found, await run_inline(partial(commit, 6))

    found, last = runner.run(late())
    assert [type(outcome) for outcome in found] == [TimeoutError] * 5
    assert last == 60
    assert writer.groups == [[1], [6]], "the first write had begun"


class Large:
    """An item that can be found in memory."""


@pytest.mark.long
def test_items_whose_time_is_up_take_no_memory(writer: Writer, runner: asyncio.Runner) -> None:
    release, begun = threading.Event(), threading.Event()

    def write(items: list[Large]) -> list[None]:
        begun.set()
        assert release.wait(10)
        return [None] * len(items)

    commit: AsyncGroupCommit[Large, None] = AsyncGroupCommit(write, lambda: None, max_items=3, seconds=0.05)

    async def too_late() -> list[Large | None]:
        first = asyncio.create_task(run_inline(partial(commit, Large())))
        assert await asyncio.to_thread(begun.wait, 10)
        items = [Large() for _ in range(20)]
        found = [weakref.ref(item) for item in items]
        tasks = [asyncio.create_task(run_inline(partial(commit, item))) for item in items]
        del items
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert {type(result) for result in results} == {TimeoutError}
        del tasks, results
        await asyncio.sleep(0)  # the loop itself holds the results until its next turn
        gc.collect()
        return [each() for each in found]

    try:
        assert set(runner.run(too_late())) == {None}, "while a write hangs, nothing else is kept"
    finally:
        release.set()


def test_outside_of_a_loop_an_item_is_written_alone_and_in_the_same_thread(writer: Writer) -> None:
    writer.go_on.set()
    done: list[str] = []
    commit = AsyncGroupCommit(writer, lambda: done.append("afterwards"), max_items=3, seconds=10.0)
    assert [commit(1), commit(2)] == [10, 20]
    assert writer.groups == [[1], [2]]
    assert set(writer.threads) == {threading.current_thread().name}
    assert done == ["afterwards"] * 2
    with pytest.raises(RuntimeError):
        commit(13)
    assert done == ["afterwards"] * 2, "nothing was written"


@pytest.mark.long
def test_an_item_from_another_thread_does_not_wait_for_the_loop(writer: Writer, runner: asyncio.Runner) -> None:
    commit = commit_of(writer)

    async def both() -> list[Outcome]:
        tasks = await waiting(commit, writer, 1)
        alone = asyncio.create_task(asyncio.to_thread(commit, 2))
        await asyncio.to_thread(eventually, lambda: len(writer.groups) == 2, 10)
        writer.go_on.set()
        return await asyncio.gather(*tasks, alone, return_exceptions=True)

    assert runner.run(both()) == [10, 20]
    assert writer.groups == [[1], [2]]


@pytest.mark.long
def test_an_error_afterwards_loses_no_result_and_does_not_stop_later_writes(
    writer: Writer, runner: asyncio.Runner
) -> None:
    def fail() -> None:
        raise RuntimeError("afterwards")

    commit = AsyncGroupCommit(writer, fail, max_items=3, seconds=10.0)
    assert runner.run(outcomes(commit, writer, 1, 2, 3)) == [10, 20, 30]
    assert runner.run(outcomes(commit, writer, 4, 5)) == [40, 50]
    assert commit(6) == 60, "outside of a loop too"


@pytest.mark.long
def test_the_loop_goes_on_during_a_write(writer: Writer, runner: asyncio.Runner) -> None:
    async def turns() -> int:
        (task,) = await waiting(commit_of(writer), writer, 1)
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert not task.done()
        writer.go_on.set()
        return await task

    assert runner.run(turns()) == 10


@pytest.mark.long
def test_run_inline_returns_and_raises_what_the_function_does(runner: asyncio.Runner) -> None:
    assert runner.run(run_inline(lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        runner.run(run_inline(lambda: 1 // 0))


@pytest.mark.long
def test_a_function_may_commit_several_times_and_go_on_after_a_failure(writer: Writer, runner: asyncio.Runner) -> None:
    writer.go_on.set()
    commit = commit_of(writer)

    def several() -> list[int]:
        with pytest.raises(RuntimeError):
            commit(13)
        return [commit(1), commit(2)]

    assert runner.run(run_inline(several)) == [10, 20]


@pytest.mark.long
def test_functions_that_wait_at_the_same_time_have_variables_of_their_own(
    writer: Writer, runner: asyncio.Runner
) -> None:
    commit, variable = commit_of(writer), ContextVar[int]("variable")

    def note(item: int) -> tuple[int, int]:
        variable.set(item)
        return commit(item) // 10, variable.get()

    async def at_once() -> list[tuple[int, int]]:
        tasks = [asyncio.create_task(run_inline(partial(note, item))) for item in range(1, 7)]
        assert await asyncio.to_thread(writer.begun.wait, 10)
        writer.go_on.set()
        return await asyncio.gather(*tasks)

    assert runner.run(at_once()) == [(item, item) for item in range(1, 7)]


def test_a_cancelled_request_is_not_written_and_the_others_are(writer: Writer, runner: asyncio.Runner) -> None:
    commit = commit_of(writer)

    async def cancel() -> list[Outcome]:
        tasks = await waiting(commit, writer, 1, 2, 3)
        tasks[1].cancel()
        await asyncio.wait({tasks[1]})
        writer.go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = runner.run(cancel())
    assert [type(outcome) for outcome in found] == [int, asyncio.CancelledError, int]
    assert writer.groups == [[1], [3]]
