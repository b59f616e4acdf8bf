"""Retention and erasure: what is kept how long, and how a person is forgotten. Small batches, each a transaction.

Kept for ever: tombstones, and failed events until an operator deals with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, delete, or_, select, update

from models.database import reading, write
from models.tables import Change, Drift, Event, EventStatus, Kind, Run, RunStatus, User
from models.types import db_in
from worker.apply import change, lock_rows, note_changes, save_rows
from worker.decide import State
from worker.errors import ConfigurationError

log = structlog.get_logger()

BATCH = 1000
PERSONAL = ("email", "first_name", "last_name")


@dataclass(frozen=True, slots=True)
class Periods:
    """How long things are kept.

    Event ids outlive the events API's 90 days, so that nothing it returns again is taken for new.
    """

    payloads: timedelta = timedelta(days=30)
    events: timedelta = timedelta(days=100)
    changes: timedelta = timedelta(days=365)
    persons: timedelta = timedelta(days=30)
    """E-mail and name of a deleted user."""


def retain(engine: Engine, periods: Periods, stopping: Callable[[], bool] = lambda: False) -> dict[str, int]:
    """Drop what is older than its period; return how many of each were dropped."""
    done = Event.status == EventStatus.DONE
    old_payload = select(Event.id).where(done, Event.body.is_not(None), Event.processed_at < _ago(periods.payloads))
    old_event = select(Event.id).where(done, Event.last_delivered_at < _ago(periods.events))
    old_change = select(Change.id).where(Change.at < _ago(periods.changes))
    old_run = select(Run.id).where(Run.status != RunStatus.RUNNING, Run.finished_at < _ago(periods.changes))
    steps: dict[str, Callable[[Connection], int]] = {
        "payloads": lambda tx: _blank_payloads(tx, old_payload.limit(BATCH)),
        "events": lambda tx: tx.execute(delete(Event).where(Event.id.in_(old_event.limit(BATCH)))).rowcount,
        "changes": lambda tx: tx.execute(delete(Change).where(Change.id.in_(old_change.limit(BATCH)))).rowcount,
        "runs": lambda tx: _drop_runs(tx, list(tx.execute(old_run.limit(BATCH)).scalars())),
    }
    dropped = {name: _until_none(engine, step, stopping) for name, step in steps.items()}
    dropped["persons"] = _erase_deleted(engine, periods.persons, stopping)
    log.info("retention", **dropped)
    return dropped


def forget(engine: Engine, user_id: str, who: str) -> None:
    """Blank a deleted user's e-mail and name in mirror, changes, drift and payloads, at once.

    Raises:
        ConfigurationError: the user is unknown, or still lives in WorkOS, which would only send the data again.
    """
    with reading(engine) as tx:
        row = tx.execute(select(User.deleted_by).where(User.id == user_id)).one_or_none()
    if row is None:
        raise ConfigurationError(f"the mirror knows no user {user_id}")
    if row.deleted_by is None:
        raise ConfigurationError(f"user {user_id} lives in WorkOS; delete it there first, or its data comes again")
    write(engine, lambda tx: _erase(tx, user_id, "operator", who))


def _ago(period: timedelta) -> Any:
    return db_in(-period.total_seconds())


def _until_none(engine: Engine, step: Callable[[Connection], int], stopping: Callable[[], bool]) -> int:
    total = 0
    while not stopping() and (number := write(engine, step)):
        total += number
    return total


def _blank_payloads(tx: Connection, which: Any) -> int:
    return tx.execute(update(Event).where(Event.id.in_(which)).values(body=None)).rowcount


def _drop_runs(tx: Connection, ids: list[str]) -> int:
    if ids:
        tx.execute(delete(Drift).where(Drift.run_id.in_(ids)))
        tx.execute(delete(Run).where(Run.id.in_(ids)))
    return len(ids)


def _erase_deleted(engine: Engine, period: timedelta, stopping: Callable[[], bool]) -> int:
    known = or_(*(getattr(User, name).is_not(None) for name in PERSONAL))
    due = select(User.id).where(User.deleted_by.is_not(None), User.touched_at < _ago(period), known).limit(BATCH)
    total = 0
    while not stopping():
        with reading(engine) as tx:
            ids = list(tx.execute(due).scalars())
        if not ids:
            break
        for id in ids:
            write(engine, lambda tx: _erase(tx, id, "settings", "ERASE_AFTER_DAYS"))  # noqa: B023 - called now
        total += len(ids)
    return total


def _erase(tx: Connection, user_id: str, cause: str, cause_id: str) -> None:
    state = lock_rows(tx, Kind.USER, [user_id])[user_id]
    if state is None or not state.deleted:
        return
    blank = State(state.version, state.deleted, {**state.content, **dict.fromkeys(PERSONAL)}, state.by_resync)
    save_rows(tx, Kind.USER, {user_id: blank})
    mine = (Change.kind == Kind.USER, Change.object_id == user_id)
    for id, before, after in tx.execute(select(Change.id, Change.before, Change.after).where(*mine)).all():
        tx.execute(update(Change).where(Change.id == id).values(before=_blanked(before), after=_blanked(after)))
    tx.execute(update(Drift).where(Drift.kind == Kind.USER, Drift.object_id == user_id).values(fields=None))
    theirs = (Event.kind == Kind.USER, Event.object_id == user_id, Event.status != EventStatus.PENDING)
    tx.execute(update(Event).where(*theirs).values(body=None))
    note_changes(tx, [change(Kind.USER, user_id, blank, blank, cause, cause_id)])


def _blanked(shown: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if shown is None else {**shown, **{name: None for name in PERSONAL if name in shown}}
