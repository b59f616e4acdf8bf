"""Retention: what is kept how long. Small batches, each a transaction.

Kept for ever: tombstones, and failed events until an operator deals with them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, delete, select, update

from models.database import delete_some, in_transaction
from models.tables import (
    Change,
    Drift,
    Event,
    EventStatus,
    HookDelivery,
    Join,
    JoinState,
    Listing,
    Mirror,
    Read,
    Run,
    RunStatus,
    Seen,
    UserAddress,
)
from models.types import db_now_plus
from worker.decision.decide import Outcome
from worker.mirror.erasure import about_erased, blank_undecided, erase_deleted, needless_addresses

log = structlog.get_logger()

BATCH = 500


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
    ignored = (Event.status == EventStatus.DONE) & (Event.outcome == Outcome.IGNORED)
    ended_run = select(Run.id).where(Run.status != RunStatus.RUNNING)
    old_run = select(Run.id).where(Run.status != RunStatus.RUNNING, Run.finished_at < _ago(periods.changes))
    steps: dict[str, Callable[[Connection], int]] = {
        # The drain keeps no payload of an ignored type; earlier releases did.
        "payloads": lambda tx: _blank_payloads(tx, done, (Event.processed_at < _ago(periods.payloads)) | ignored),
        # Of those that came after their person was erased, what the drain could not know.
        "erased_payloads": lambda tx: _blank_payloads(tx, done, about_erased()),
        "erased_failures": blank_undecided,
        "events": _dropper(Event, done, Event.last_delivered_at < _ago(periods.events)),
        "changes": lambda tx: _drop_changes(tx, Change.at < _ago(periods.changes)),
        "joins": _dropper(Join, Join.state.in_(OVER), Join.settled_at < _ago(periods.changes)),
        "hook_deliveries": _dropper(
            HookDelivery, HookDelivery.change_id <= select(Mirror.changes_dropped_to).scalar_subquery()
        ),
        **{f"run_{table.__tablename__}": _dropper(table, table.run_id.in_(ended_run)) for table in OF_RUNS},
        "drift": _dropper(Drift, Drift.run_id.in_(old_run)),
        "runs": _dropper(Run, Run.id.in_(old_run)),
        "user_addresses": _dropper(UserAddress, *needless_addresses()),
    }
    dropped = {name: _until_none(engine, step, stopping) for name, step in steps.items()}
    dropped["persons"] = erase_deleted(engine, periods.persons, stopping)
    log.info("retention", **dropped)
    return dropped


OVER = (JoinState.JOINED, JoinState.DROPPED)
"""Joins that nothing is left to be said of; a block is kept for ever."""
OF_RUNS: tuple[type[Listing | Read | Seen], ...] = (Listing, Read, Seen)
"""What only a run in work needs: left of one that ended only if its worker died then."""


def _ago(period: timedelta) -> Any:
    return db_now_plus(-period.total_seconds())


def _until_none(engine: Engine, step: Callable[[Connection], int], stopping: Callable[[], bool]) -> int:
    total = 0
    while not stopping():
        number = in_transaction(engine, step)
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
