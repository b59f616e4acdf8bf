"""Doing several things at once, each once, as long as there are any."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")

AHEAD = 200
"""Items read ahead from the source."""


def in_parallel(
    at_once: int,
    source: Callable[[int], list[T]],
    work: Callable[[T], None],
    leaving: Callable[[], bool],
    broken: threading.Event,
) -> bool:
    """Do `work` on what `source` names, several at once, until it names nothing; False if left off.

    Args:
        at_once: how many.
        source: names so many of what is open now, those that are being worked on too.
        work: does one, after which the source no longer names it, or names it again to be done again.
        leaving: says whether to leave off.
        broken: set when `work` raises, so that `leaving` can tell the others; what it raised is raised here.
    """
    flying: dict[Future[None], T] = {}
    waiting: deque[T] = deque()
    with ThreadPoolExecutor(at_once, "resync") as pool:
        while not leaving():
            if not waiting:
                waiting.extend(item for item in source(AHEAD + len(flying)) if item not in flying.values())
            while waiting and len(flying) < at_once:
                item = waiting.popleft()
                flying[pool.submit(work, item)] = item
            if not flying:
                return True
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                del flying[future]
                if future.exception() is not None:
                    broken.set()
                future.result()
    return False
