"""The clock: one small loop that calls each duty when it is due. Two clocks by mistake do no harm."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database import in_transaction
from worker.errors import WorkOSUnavailableError
from worker.inbox.store import needs_drain
from worker.queue.doorbell import Doorbell
from worker.repair.schedule import CLOCK_TICK, claim

log = structlog.get_logger()

SWEEP_OLDER_THAN_SECONDS = 2.0
"""What waited so long was announced by no doorbell, or its drain is gone."""


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """Something to do every so many seconds."""

    name: str
    every_seconds: float
    run: Callable[[], object]


def sweep(engine: Engine, bell: Doorbell) -> bool:
    """Ring for events that no doorbell announced; return whether it rang.

    Raises:
        redis.exceptions.RedisError: Redis is away.
        sqlalchemy.exc.DBAPIError: the database is away.
    """
    # A job in the queue will find everything: no second ring for the same backlog.
    if bell.waiting() or not needs_drain(engine, older_than=SWEEP_OLDER_THAN_SECONDS):
        return False
    if rang := bell.ring():
        log.info("sweep_rang")
    return rang


def heartbeat(engine: Engine) -> None:
    """Leave a sign of life, by the database's clock."""
    in_transaction(engine, claim, CLOCK_TICK, 0.0)


def run(duties: list[PeriodicTask], stop: threading.Event) -> None:
    """Call each of `duties` at its time until `stop` is set. A duty that was missed runs once, not many times."""
    due = {duty.name: time.monotonic() for duty in duties}
    while not stop.wait(max(0.0, min(due.values()) - time.monotonic())):
        for duty in duties:
            if due[duty.name] <= time.monotonic():
                _attempt(duty)
                due[duty.name] = time.monotonic() + duty.every_seconds


def _attempt(duty: PeriodicTask) -> None:
    try:
        duty.run()
    except (DBAPIError, RedisError, WorkOSUnavailableError) as error:
        log.warning("duty_failed", duty=duty.name, error=type(error).__name__)
    except Exception:
        # Not foreseen, so with its traceback; the other duties go on, and this one is tried again.
        log.exception("duty_failed", duty=duty.name)
