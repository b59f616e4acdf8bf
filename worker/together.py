"""Group commit: several threads' writes in one transaction."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Together(Generic[T]):
    """Writes of several threads in one transaction: who comes first writes for all who came meanwhile.

    Args:
        write: writes some, or fails for all of them.
        most: so much, as the callers count, is written at once; but at least one.
    """

    def __init__(self, write: Callable[[list[T]], object], most: int) -> None:
        self._write = write
        self._most = most
        self._waiting: deque[tuple[T, int, Future[None]]] = deque()
        self._writer = threading.Lock()

    def __call__(self, item: T, size: int) -> None:
        """Return when `item` is written; raises what its writing raised."""
        done: Future[None] = Future()
        self._waiting.append((item, size, done))
        with self._writer:
            while not done.done():
                self._write_some()
        done.result()

    def _write_some(self) -> None:
        batch = [self._waiting.popleft()]
        while self._waiting and sum(size for _, size, _ in batch) + self._waiting[0][1] <= self._most:
            batch.append(self._waiting.popleft())
        try:
            self._write([item for item, _, _ in batch])
        except BaseException as error:  # noqa: BLE001 - each waiting thread raises it
            for _, _, done in batch:
                done.set_exception(error)
        else:
            for _, _, done in batch:
                done.set_result(None)
