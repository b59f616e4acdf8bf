"""Group commit: several threads' writes in one transaction, made by a thread of its own."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Waiting(NamedTuple, Generic[T, R]):
    item: T
    size: int
    done: "Future[R]"


class GroupCommit(Generic[T, R]):
    """Writes what several threads hand over: all that came while it wrote, it writes together next.

    Args:
        write: writes some items and returns a result for each, or fails for all of them.
        most: so much, as the callers count, is written at once; but at least one item.
    """

    def __init__(self, write: Callable[[list[T]], Sequence[R]], most: int) -> None:
        self._write = write
        self._most = most
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="group-commit")
        self._thread.start()

    def __call__(self, item: T, size: int = 1, seconds: float | None = None) -> R:
        """Return the result of writing `item`; raises what its writing raised.

        Raises:
            TimeoutError: it took longer than `seconds`. It may yet be written.
        """
        waiting = _Waiting[T, R](item, size, Future())
        with self._changed:
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.done.result(seconds)

    def close(self) -> None:
        """End the thread once all that was handed over is written."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next_group():
            self._write_group(group)

    def _next_group(self) -> list[_Waiting[T, R]]:
        """Wait for something to write and return it; nothing: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            group: list[_Waiting[T, R]] = []
            room = self._most
            while self._waiting and (not group or self._waiting[0].size <= room):
                group.append(self._waiting.popleft())
                room -= group[-1].size
            return group

    def _write_group(self, group: list[_Waiting[T, R]]) -> None:
        try:
            results = self._write([waiting.item for waiting in group])
        except BaseException as error:  # noqa: BLE001 - each waiting thread raises it
            for waiting in group:
                waiting.done.set_exception(error)
        else:
            for waiting, result in zip(group, results, strict=True):
                waiting.done.set_result(result)
