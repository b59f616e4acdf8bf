"""Group commit: one thread writes the items of several threads, many in one transaction.

`webhooks.group_commit` does the same for an event loop.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T]):
    """An item to write."""

    item: T
    size: int
    written: Future[None] = field(default_factory=Future)


class GroupCommit(Generic[T]):
    """Writes the items of several threads, in order. Items that arrive during a write are written together next.

    Args:
        write: writes some items, or fails for all of them.
        max_size: upper bound on the sum of the sizes written together. A larger item is written alone.
    """

    def __init__(self, write: Callable[[list[T]], object], max_size: int) -> None:
        self._write = write
        self._max_size = max_size
        self._queue: SimpleQueue[_Waiting[T] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="group-commit")
        self._thread.start()

    def submit(self, item: T, size: int = 1) -> Future[None]:
        """Write `item` soon; `size` is in the unit of `max_size`. The future has the error that `write` raised."""
        waiting = _Waiting(item, size)
        self._queue.put(waiting)
        return waiting.written

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

    def _group(self, first: _Waiting[T]) -> tuple[list[_Waiting[T]], _Waiting[T] | None]:
        """Return the items to write together with `first`, and the next item if it did not fit."""
        group, room = [first], self._max_size - first.size
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

    def _write_group(self, group: Sequence[_Waiting[T]]) -> None:
        try:
            self._write([waiting.item for waiting in group])
        except BaseException as error:  # noqa: BLE001 - raised by the futures
            for waiting in group:
                waiting.written.set_exception(error)
        else:
            for waiting in group:
                waiting.written.set_result(None)
