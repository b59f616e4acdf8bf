"""Group commit: the writes of several threads in one transaction, made by one writer thread."""

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Waiting(Generic[T, R]):
    """An item to write, and a lock that is held until it is written; a `Future` takes ten times as long."""

    __slots__ = ("error", "item", "result", "size", "written")

    def __init__(self, item: T, size: int) -> None:
        self.item = item
        self.size = size
        self.result: R
        self.error: BaseException | None = None
        self.written = threading.Lock()
        self.written.acquire()


class GroupCommit(Generic[T, R]):
    """Writes the items of several threads: those that arrive during a write are written together next.

    Args:
        write: writes some items and returns a result for each, or fails for all of them.
        most: upper bound on the sum of the sizes written at once; one item is always written.
    """

    def __init__(self, write: Callable[[list[T]], Sequence[R]], most: int) -> None:
        self._write = write
        self._most = most
        self._queue: SimpleQueue[_Waiting[T, R] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="group-commit")
        self._thread.start()

    def __call__(self, item: T, size: int = 1, seconds: float = -1) -> R:
        """Write `item` and return the result.

        Args:
            item: what to write.
            size: its size, in the unit of `most`.
            seconds: how long to wait; below 0 without end.

        Raises:
            Exception: what `write` raised.
            TimeoutError: it took longer than `seconds`. The item may still be written.
        """
        waiting = _Waiting[T, R](item, size)
        self._queue.put(waiting)
        if not waiting.written.acquire(timeout=seconds):
            raise TimeoutError
        if waiting.error is not None:
            raise waiting.error
        return waiting.result

    def close(self) -> None:
        """Write what is waiting, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        first = self._queue.get()
        while first is not None:
            group, following = self._group(first)
            self._write_group(group)
            first = following or self._queue.get()

    def _group(self, first: _Waiting[T, R]) -> tuple[list[_Waiting[T, R]], _Waiting[T, R] | None]:
        """Return the items to write together with `first`, and the next one if it had no room."""
        group, room = [first], self._most - first.size
        while True:
            try:
                following = self._queue.get_nowait()
            except Empty:
                return group, None
            if following is None:
                self._queue.put(None)  # closed: after this group
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
