"""Group commit for an event loop: deliveries that arrive during a commit are committed together next.

`worker.group_commit` blocks the thread that waits for a result. Here the function that waits runs in a greenlet, which
is paused in the middle of Flask's ordinary calls, and the event loop goes on.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from greenlet import getcurrent, greenlet

from worker.errors import stack_of, unexpected

log = structlog.get_logger()

T = TypeVar("T")
R = TypeVar("R")


async def run_inline(function: Callable[[], R]) -> R:
    """Run `function` in the event loop. While it waits for an `AsyncGroupCommit`, the loop goes on.

    It must not block in any other way: that would stop the event loop.
    """
    running = greenlet(function)
    running.gr_context = copy_context()
    found: Any = running.switch()
    while not running.dead:
        try:
            result = await found
        except BaseException as error:  # noqa: BLE001 - raised where the function waits
            found = running.throw(error)
        else:
            found = running.switch(result)
    return found  # type: ignore[no-any-return]


class AsyncGroupCommit(Generic[T, R]):
    """Writes items that wait at the same time together, up to `max_items` in one call of `write`.

    It calls `write` and `on_written` in a thread of its own; outside of `run_inline`, in the calling thread.

    Args:
        write: writes some items and returns a result for each, or fails for all of them.
        on_written: called after each successful `write`. Its errors are only logged.
        max_items: upper bound on the number of items in one call.
        seconds: how long an item may wait for its result.
    """

    def __init__(
        self, write: Callable[[list[T]], Sequence[R]], on_written: Callable[[], object], max_items: int, seconds: float
    ) -> None:
        self._write = write
        self._on_written = on_written
        self._max_items = max_items
        self._seconds = seconds
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._thread = ThreadPoolExecutor(1, "group-commit")
        self._writing: asyncio.Task[None] | None = None

    def __call__(self, item: T) -> R:
        """Write `item` and return its result.

        Inside `run_inline`, it may be written together with other items. Elsewhere it is written alone, in the calling
        thread.

        Raises:
            TimeoutError: it took too long. The item may still be written.
            Exception: what `write` raised.
        """
        caller = getcurrent().parent  # set if `run_inline` runs us
        if caller is None:
            [result] = self._write([item])
            self._finish()
        else:
            result = caller.switch(self._written(item))
        return result

    async def _written(self, item: T) -> R:
        waiting = _Waiting[T, R](item, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_groups())
        try:
            async with asyncio.timeout(self._seconds):
                return await waiting.result
        finally:
            # Remove items that timed out: the writer may hang. They are at the left end.
            while self._waiting and self._waiting[0].result.done():
                self._waiting.popleft()

    async def _write_groups(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while group := self._next_group():
                await loop.run_in_executor(self._thread, self._write_group, loop, group)
        finally:
            self._writing = None

    def _next_group(self) -> "list[_Waiting[T, R]]":
        """Return the next items to write, without those that timed out: nobody waits for them any more."""
        group: list[_Waiting[T, R]] = []
        while self._waiting and len(group) < self._max_items:
            waiting = self._waiting.popleft()
            if not waiting.result.done():
                group.append(waiting)
        return group

    def _write_group(self, loop: asyncio.AbstractEventLoop, group: "list[_Waiting[T, R]]") -> None:
        try:
            results = self._write([waiting.item for waiting in group])
        except Exception as error:  # noqa: BLE001 - each of those waiting raises it
            loop.call_soon_threadsafe(_hand_over, group, asyncio.Future.set_exception, [error] * len(group))
        else:
            loop.call_soon_threadsafe(_hand_over, group, asyncio.Future.set_result, results)
            self._finish()

    def _finish(self) -> None:
        try:
            self._on_written()
        except Exception as error:  # noqa: BLE001 - the items are written, and the next ones must be
            log.error("on_written_failed", error=unexpected(error), stack=stack_of(error))  # noqa: TRY400 - no values


class _Waiting(NamedTuple, Generic[T, R]):
    item: T
    result: "asyncio.Future[R]"


def _hand_over(group: list[_Waiting[T, R]], set_outcome: Callable[..., None], outcomes: Sequence[object]) -> None:
    """Give each of those waiting its outcome, unless it waits no longer."""
    for waiting, outcome in zip(group, outcomes, strict=True):
        if not waiting.result.done():
            set_outcome(waiting.result, outcome)
