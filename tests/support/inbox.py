"""The inbox of a running installation: its backlog, the passing of time, and drains stopped in mid-batch."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from sqlalchemy import ColumnElement, Connection, Engine, func, select, text, update

from models.database import CHANGES_LOCK, advisory_lock, read_transaction, write_transaction
from models.tables import Batch, Event, EventStatus
from models.types import db_now_plus
from tests.support.processes import Command, eventually, suppress_gone


def count(engine: Engine, *conditions: ColumnElement[bool]) -> int:
    """The number of events that meet the conditions."""
    with read_transaction(engine) as tx:
        return tx.execute(select(func.count()).select_from(Event).where(*conditions)).scalar_one()


def pending(engine: Engine) -> int:
    return count(engine, Event.status == EventStatus.PENDING)


def let_time_pass(engine: Engine, seconds: float = 3600.0) -> None:
    """Make pending events and batches `seconds` older."""
    with write_transaction(engine) as tx:
        tx.execute(update(Batch).where(Batch.started_at.is_not(None)).values(started_at=db_now_plus(-seconds)))
        tx.execute(update(Event).where(Event.status == EventStatus.PENDING).values(due_at=db_now_plus(-seconds)))


@contextmanager
def held_in_mid_batch(engine: Engine, worker: Command, seconds: float = 20.0) -> Iterator[None]:
    """Stop the drains of `worker`; on entry, at least one has taken a batch and not committed it."""
    if engine.dialect.name == "postgresql":
        with held_before_commit(engine, seconds):
            yield
        return
    lanes = eventually(lambda: _frozen_in_mid_batch(engine, worker), seconds)
    try:
        yield
    finally:
        _each(lanes, signal.SIGCONT)


@contextmanager
def held_before_commit(engine: Engine, seconds: float) -> Iterator[None]:
    """Block drains on PostgreSQL before they assign ids of `changes`; on entry, at least one waits."""
    with write_transaction(engine) as tx:
        advisory_lock(tx, CHANGES_LOCK)
        eventually(lambda: _waits_for_changes_lock(tx), seconds)
        yield


def _frozen_in_mid_batch(engine: Engine, worker: Command) -> list[psutil.Process]:
    if not _batches(engine):
        return []
    _each(lanes := worker.lanes(), signal.SIGSTOP)
    if lanes and _batches(engine):
        return lanes
    _each(lanes, signal.SIGCONT)
    return []


def _each(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress_gone():
            process.send_signal(number)


def _batches(engine: Engine) -> int:
    with read_transaction(engine) as tx:
        started = select(func.count()).where(Batch.started_at.is_not(None))
        return tx.execute(started).scalar_one()


def _waits_for_changes_lock(tx: Connection) -> bool:
    waiting = text(
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE l.locktype = 'advisory' AND NOT l.granted AND l.classid = :key AND d.datname = current_database()"
    )
    return bool(tx.execute(waiting, {"key": CHANGES_LOCK}).scalar_one())
