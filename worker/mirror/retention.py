"""Retention and erasure: what is kept how long, and how a person is forgotten. Small batches, each a transaction.

Kept for ever: tombstones, and failed events until an operator deals with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, delete, select, update

from models.database import delete_some, reading, write
from models.tables import (
    Change,
    Drift,
    Event,
    EventStatus,
    HookDelivery,
    Join,
    JoinState,
    Kind,
    Listing,
    Mirror,
    Read,
    Run,
    RunStatus,
    Seen,
    User,
)
from models.types import constant, db_in
from worker.errors import ConfigurationError
from worker.mirror.apply import change, lock_rows, note_changes, save_rows

log = structlog.get_logger()

BATCH = 500
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
    """Drop what is older than its period; return how many of each were dropped.

    Args:
        engine: the database.
        periods: how long things are kept.
        stopping: says whether to leave off between two batches.
    """
    done = Event.status.in_((EventStatus.DONE, EventStatus.DISMISSED))
    ended_run = select(Run.id).where(Run.status != RunStatus.RUNNING)
    old_run = select(Run.id).where(Run.status != RunStatus.RUNNING, Run.finished_at < _ago(periods.changes))
    steps: dict[str, Callable[[Connection], int]] = {
        "payloads": lambda tx: _blank_payloads(tx, done, Event.processed_at < _ago(periods.payloads)),
        # An erased person's event that came once more brought its payload with it.
        "erased_payloads": lambda tx: _blank_payloads(tx, done, _about_erased()),
        "events": _dropper(Event, done, Event.last_delivered_at < _ago(periods.events)),
        "changes": lambda tx: _drop_changes(tx, Change.at < _ago(periods.changes)),
        "joins": _dropper(Join, Join.state.in_(OVER), Join.settled_at < _ago(periods.changes)),
        "hook_deliveries": _dropper(
            HookDelivery, HookDelivery.change_id <= select(Mirror.changes_dropped_to).scalar_subquery()
        ),
        **{f"run_{table.__tablename__}": _dropper(table, table.run_id.in_(ended_run)) for table in OF_RUNS},
        "drift": _dropper(Drift, Drift.run_id.in_(old_run)),
        "runs": _dropper(Run, Run.id.in_(old_run)),
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


OVER = (JoinState.JOINED, JoinState.DROPPED)
"""Joins that nothing is left to be said of; a block is kept for ever."""
OF_RUNS: tuple[type[Listing | Read | Seen], ...] = (Listing, Read, Seen)
"""What only a run in work needs: left of one that ended only if its worker died then."""


def _ago(period: timedelta) -> Any:
    return db_in(-period.total_seconds())


def _about_erased() -> ColumnElement[bool]:
    return (Event.kind == Kind.USER) & Event.object_id.in_(select(User.id).where(User.erased))


def _until_none(engine: Engine, step: Callable[[Connection], int], stopping: Callable[[], bool]) -> int:
    total = 0
    while not stopping():
        number = write(engine, step)
        if not number:
            break
        total += number
    return total


def _blank_payloads(tx: Connection, *which: ColumnElement[bool]) -> int:
    some = select(Event.id).where(Event.body.is_not(None), *which).limit(BATCH)
    return tx.execute(update(Event).where(Event.id.in_(some)).values(body=None)).rowcount


def _dropper(table: type[Any], *which: ColumnElement[bool]) -> Callable[[Connection], int]:
    return lambda tx: delete_some(tx, table, *which, most=BATCH)


def _drop_changes(tx: Connection, old: ColumnElement[bool]) -> int:
    """Drop changes, and note how far, so that a follower who is not that far is told what it missed."""
    ids = list(tx.execute(select(Change.id).where(old).order_by(Change.id).limit(BATCH)).scalars())
    if ids:
        tx.execute(delete(Change).where(Change.id.in_(ids)))
        further = update(Mirror).where(Mirror.changes_dropped_to < ids[-1])
        tx.execute(further.values(changes_dropped_to=ids[-1]))
    return len(ids)


def _erase_deleted(engine: Engine, period: timedelta, stopping: Callable[[], bool]) -> int:
    due = select(User.id).where(User.deleted_by.is_not(None), ~User.erased, User.touched_at < _ago(period))
    total = 0
    while not stopping():
        with reading(engine) as tx:
            id = tx.execute(due.limit(1)).scalar_one_or_none()
        if id is None:
            break
        write(engine, lambda tx: _erase(tx, id, "settings", "ERASE_AFTER_DAYS"))  # noqa: B023 - called now
        total += 1
    return total


def _erase(tx: Connection, user_id: str, cause: str, cause_id: str) -> None:
    state = lock_rows(tx, Kind.USER, [user_id])[user_id]
    if state is None or not state.deleted:
        return
    blank = replace(state, content={**state.content, **dict.fromkeys(PERSONAL)}, erased=True)
    save_rows(tx, Kind.USER, {user_id: blank})
    mine = (Change.kind == Kind.USER, Change.object_id == user_id)
    for id, before, after in tx.execute(select(Change.id, Change.before, Change.after).where(*mine)).all():
        tx.execute(update(Change).where(Change.id == id).values(before=_blanked(before), after=_blanked(after)))
    # What a hook's traceback quotes is the host's.
    told = (HookDelivery.kind == Kind.USER, HookDelivery.object_id == user_id)
    tx.execute(update(HookDelivery).where(*told).values(error=None, traceback=None))
    tx.execute(update(Drift).where(Drift.kind == Kind.USER, Drift.object_id == user_id).values(fields=None))
    theirs = (Event.kind == Kind.USER) & (Event.object_id == user_id) & (Event.status != EventStatus.PENDING)
    tx.execute(update(Event).where(theirs | Event.id.in_(_failed_that_name(tx, user_id))).values(body=None))
    note_changes(tx, [change(Kind.USER, user_id, blank, blank, cause, cause_id)])


def _failed_that_name(tx: Connection, user_id: str) -> list[str]:
    """Return failed events that name a user anywhere: what they are about was never understood."""
    failed = select(Event.id, Event.body).where(Event.status == constant(EventStatus.FAILED), Event.body.is_not(None))
    bodies = tx.execute(failed, execution_options={"yield_per": 100})
    return [id for id, body in bodies if body and user_id.encode() in body]


def _blanked(shown: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if shown is None else {**shown, **{name: None for name in PERSONAL if name in shown}}
