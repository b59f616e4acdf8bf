"""Group commit: one thread writes the items of several threads, many in one transaction."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T, R]):
    """An item to write. `written` is locked until it is written; a `Future` would take ten times as long."""

    item: T
    size: int
    result: R = field(init=False)
    error: BaseException | None = None
    written: threading.Lock = field(default_factory=threading.Lock)


class GroupCommit(Generic[T, R]):
    """Writes the items of several threads. Items that arrive during a write are written together next.

    Args:
        write: writes some items and returns a result for each, or fails for all of them.
        most: upper bound on the sum of the sizes written together. A larger item is written alone.
    """

    def __init__(self, write: Callable[[list[T]], Sequence[R]], most: int) -> None:
        self._write = write
        self._most = most
        self._queue: SimpleQueue[_Waiting[T, R] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="group-commit")
        self._thread.start()

    def __call__(self, item: T, size: int = 1) -> R:
        """Write `item`, whose size is in the unit of `most`, and return the result; raise what `write` raised."""
        waiting = _Waiting[T, R](item, size)
        waiting.written.acquire()
        self._queue.put(waiting)
        waiting.written.acquire()
        if waiting.error is not None:
            raise waiting.error
        return waiting.result

    def close(self) -> None:
        """Write the items that are waiting, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        first = self._queue.get()
        while first is not None:
            group, following = self._group(first)
            self._write_group(group)
            first = following or self._queue.get()

    def _group(self, first: _Waiting[T, R]) -> tuple[list[_Waiting[T, R]], _Waiting[T, R] | None]:
        """Return the items to write together with `first`, and the next item if it did not fit."""
        group, room = [first], self._most - first.size
        while True:
            try:
                following = self._queue.get_nowait()
            except Empty:
                return group, None
            if following is None:
                self._queue.put(None)  # closed: the thread ends after this group
                return group, None
            if following.size > room:
                return group, following
            group.append(following)
            room -= following.size

    def _write_group(self, group: list[_Waiting[T, R]]) -> None:
        try:
            results = self._write([waiting.item for waiting in group])
            for waiting, result in zip(group, results, strict=True):
                waiting.result = result
        except BaseException as error:  # noqa: BLE001 - each waiting thread raises it
            for waiting in group:
                waiting.error = error
        for waiting in group:
            waiting.written.release()
