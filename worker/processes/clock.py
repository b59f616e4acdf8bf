"""The clock: one small loop that calls each duty when it is due. Two clocks by mistake do no harm."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, update
from sqlalchemy.exc import DBAPIError

from models.bulk import dialect_insert
from models.database import write
from models.tables import Tick
from models.types import db_in, db_now
from worker.directory.client import UnreadableError
from worker.inbox.store import needs_drain
from worker.processes.doorbell import Doorbell

log = structlog.get_logger()

SWEEP_OLDER_THAN_SECONDS = 2.0
"""What waited so long was announced by no doorbell, or its drain is gone."""


CLOCK_TICK = "clock"


@dataclass(frozen=True, slots=True)
class Duty:
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
    log.info("sweep_rang")
    return bell.ring()


def claim(tx: Connection, name: str, every_seconds: float) -> bool:
    """Take the duty `name` if it is due, by the database's clock; False: it is not, or another clock has taken it."""
    first = dialect_insert(tx, Tick).values(name=name, at=db_now()).on_conflict_do_nothing().returning(Tick.name)
    if tx.execute(first).one_or_none() is not None:
        return True
    due = (Tick.name == name) & (Tick.at <= db_in(-every_seconds))
    moved = update(Tick).where(due).values(at=db_now()).returning(Tick.name)
    return tx.execute(moved).one_or_none() is not None


def beat(engine: Engine) -> None:
    """Leave a sign of life, by the database's clock."""
    write(engine, lambda tx: claim(tx, CLOCK_TICK, 0.0))


def run(duties: list[Duty], stop: threading.Event) -> None:
    """Call each of `duties` at its time until `stop` is set. A duty that was missed runs once, not many times."""
    due = {duty.name: time.monotonic() for duty in duties}
    while not stop.wait(max(0.0, min(due.values()) - time.monotonic())):
        for duty in duties:
            if due[duty.name] <= time.monotonic():
                _attempt(duty)
                due[duty.name] = time.monotonic() + duty.every_seconds


def _attempt(duty: Duty) -> None:
    try:
        duty.run()
    except (DBAPIError, RedisError, UnreadableError) as error:
        log.warning("duty_failed", duty=duty.name, error=type(error).__name__)
