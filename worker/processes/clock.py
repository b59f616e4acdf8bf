"""The clock: a loop that runs periodic tasks. It is safe to run two clocks."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from redis.exceptions import RedisError
from sqlalchemy import Engine

from models.database import in_transaction
from worker.inbox.store import needs_drain
from worker.metrics import Counters, Place
from worker.queue.doorbell import Doorbell
from worker.repair.schedule import CLOCK_TICK, take_tick

log = structlog.get_logger()

SWEEP_OLDER_THAN_SECONDS = 2.0
"""If an event has been waiting longer, its ring was lost or its drain has died."""


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A function to call every `every_seconds` seconds."""

    name: str
    every_seconds: float
    run: Callable[[], object]


def ring_if_waiting(bell: Doorbell, waiting: Callable[[], bool]) -> bool:
    """Ring for waiting work that no ring announced; return whether it rang.

    Raises:
        redis.exceptions.RedisError: Redis is unavailable.
        sqlalchemy.exc.DBAPIError: the database is unavailable.
    """
    if bell.queued_jobs() or not waiting():
        return False
    # The flag may have no owner, and would then prevent a new job. A waiting job sets it again.
    with suppress(RedisError):  # the ring reports it
        bell.clear_flag()
    return bell.ring()


def sweep(engine: Engine, bell: Doorbell) -> bool:
    """Ring for waiting events, as `ring_if_waiting`."""
    if rang := ring_if_waiting(bell, partial(needs_drain, engine, older_than=SWEEP_OLDER_THAN_SECONDS)):
        log.info("sweep_rang")
    return rang


def heartbeat(engine: Engine) -> None:
    """Record that the clock is alive. The time is the database's."""
    in_transaction(engine, take_tick, CLOCK_TICK, 0.0)


def run(tasks: list[PeriodicTask], stop: threading.Event, counters: Counters) -> None:
    """Run each task when it is due, until `stop` is set. A task that is late runs only once.

    A task that raises an error runs again when it is due, and the other tasks continue (`Counters.contained`).
    """
    due = {task.name: time.monotonic() for task in tasks}
    while not stop.wait(max(0.0, min(due.values()) - time.monotonic())):
        for task in tasks:
            if due[task.name] <= time.monotonic():
                with counters.contained(Place.TASK, task.name):
                    task.run()
                due[task.name] = time.monotonic() + task.every_seconds
