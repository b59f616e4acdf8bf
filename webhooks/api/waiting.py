"""Requests that wait for the mirror."""

import threading
import time
from collections.abc import Callable

WAIT_SECONDS = 5.0
POLL_SECONDS = 0.1


class Waiting:
    """Lets up to `max_threads` threads of this process wait at a time. The others answer at once."""

    def __init__(self, max_threads: int) -> None:
        self._free = threading.BoundedSemaphore(max_threads)

    def until(self, holds: Callable[[], bool]) -> bool:
        """Wait up to `WAIT_SECONDS` until `holds()`; return whether it does. Holds no connection while it sleeps."""
        may_wait = self._free.acquire(blocking=False)
        ends = time.monotonic() + (WAIT_SECONDS if may_wait else 0)
        try:
            while not (held := holds()) and (left := ends - time.monotonic()) > 0:
                time.sleep(min(POLL_SECONDS, left))
            return held
        finally:
            if may_wait:
                self._free.release()
