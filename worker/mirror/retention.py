"""Retention: deletes or blanks old rows in small batches, each in its own transaction.

Tombstones are never deleted. Failed events are kept until an operator replays or dismisses them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import takewhile

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, exists, select, update
from sqlalchemy.orm import aliased

from models import tables
from models.database import delete_some, in_transaction
from models.outcomes import Outcome
from models.tables import (
    Audit,
    Change,
    Event,
    EventStatus,
    FailedAttempt,
    Join,
    JoinState,
    LateVersion,
    MirrorState,
    Run,
    RunStatus,
)
from models.types import db_ago
from worker.kinds.invitation import INVITATION
from worker.kinds.membership import MEMBERSHIP
from worker.mirror.apply import ACTOR_BLANKED
from worker.mirror.erasure import (
    about_erased,
    blank_failed_or_dismissed,
    erase_deleted,
    erase_late,
    has_actor_data,
    unneeded_addresses,
    unneeded_invited_addresses,
)

log = structlog.get_logger()

BATCH = 500
FINISHED = (JoinState.JOINED, JoinState.DROPPED)
"""States of joins that may be deleted. Blocks are kept."""


@dataclass(frozen=True, slots=True)
class Periods:
    """How long data is kept.

    Events are kept longer than the 90 days of the events API, so that an event it returns again is known.
    """

    payloads: timedelta = timedelta(days=30)
    events: timedelta = timedelta(days=100)
    changes: timedelta = timedelta(days=365)
    persons: timedelta = timedelta(days=30)
    """Personal data of a deleted user."""


def retain(engine: Engine, periods: Periods, stopping: Callable[[], bool] = lambda: False) -> dict[str, int]:
    """Delete or blank data that is older than its period; return the number of rows of each kind.

    `stopping` is called between batches, and ends the work early if it returns True.
    """
    done = Event.status.in_((EventStatus.DONE, EventStatus.DISMISSED))
    ignored = (Event.status == EventStatus.DONE) & (Event.outcome == Outcome.IGNORED)
    ended_run = select(Run.id).where(Run.status != RunStatus.RUNNING)
    old_run = ended_run.where(Run.finished_at < db_ago(periods.changes))
    has_payload = exists().where(Event.id == FailedAttempt.event_id, Event.body.is_not(None))
    dropped_to = select(MirrorState.changes_dropped_to).scalar_subquery()
    # Only a running run needs these rows. Others remain if its worker crashed at the end.
    of_ended_runs = {
        f"run_{table.__tablename__}": _deleter(table, table.run_id.in_(ended_run))
        for table in (tables.Listing, tables.Read, tables.Seen)
    }
    steps: dict[str, Callable[[Connection], int]] = {
        # The drain blanks the payloads of ignored types, but earlier releases kept them.
        "payloads": _blanker(done, (Event.processed_at < db_ago(periods.payloads)) | ignored),
        # Objects that arrived after their user was erased, and their events, which the drain could not recognize.
        "erased_memberships": lambda tx: erase_late(tx, MEMBERSHIP),
        "erased_invitations": lambda tx: erase_late(tx, INVITATION),
        "erased_payloads": _blanker(Event.status == EventStatus.DONE, about_erased()),
        "erased_failures": blank_failed_or_dismissed,
        "events": _deleter(Event, done, Event.last_delivered_at < db_ago(periods.events)),
        # An error may quote the payload, so it is deleted with it.
        "failed_attempts": _deleter(FailedAttempt, ~has_payload),
        "changes": lambda tx: _delete_changes(tx, Change.at < db_ago(periods.changes), ~_is_last_decision()),
        # After `changes`: a late version is only needed with the change that it came after, which is older.
        "late_versions": _deleter(LateVersion, LateVersion.at < db_ago(periods.changes)),
        "actors": lambda tx: _blank_actors(tx, periods.persons),
        "audit": _deleter(Audit, Audit.at < db_ago(periods.changes)),
        "revocations": _deleter(tables.Revocation, tables.Revocation.settled_at < db_ago(periods.changes)),
        "joins": _deleter(Join, Join.state.in_(FINISHED), Join.settled_at < db_ago(periods.changes)),
        "hook_deliveries": _deleter(tables.HookDelivery, tables.HookDelivery.change_id <= dropped_to),
        **of_ended_runs,
        "drift": _deleter(tables.Drift, tables.Drift.run_id.in_(old_run)),
        "runs": _deleter(Run, Run.id.in_(old_run)),
        "user_addresses": _deleter(tables.UserAddress, *unneeded_addresses()),
        "invited_addresses": _deleter(tables.InvitedAddress, *unneeded_invited_addresses()),
    }
    counts = {name: _until_none(engine, step, stopping) for name, step in steps.items()}
    counts["persons"] = erase_deleted(engine, periods.persons, stopping)
    log.info("retention_finished", **counts)
    return counts


def _until_none(engine: Engine, step: Callable[[Connection], int], stopping: Callable[[], bool]) -> int:
    total = 0
    while not stopping() and (number := in_transaction(engine, step)):
        total += number
    return total


def _blanker(*which: ColumnElement[bool]) -> Callable[[Connection], int]:
    batch = select(Event.id).where(Event.body.is_not(None), *which).limit(BATCH)
    return lambda tx: tx.execute(update(Event).where(Event.id.in_(batch)).values(body=None)).rowcount


def _deleter(table: type[tables.Base], *which: ColumnElement[bool]) -> Callable[[Connection], int]:
    return lambda tx: delete_some(tx, table, *which, limit=BATCH)


def _is_last_decision() -> ColumnElement[bool]:
    """Return the condition that a change is the last decision about a person in a workspace.

    Only `changes` has it, and the next decision's `before` must equal its `after`.
    """
    later = aliased(Change)
    same = (later.kind == Change.kind, later.object_id == Change.object_id)
    of_workspace = (later.organization_id == Change.organization_id, later.id > Change.id)
    return and_(Change.kind == tables.JOIN, ~exists().where(*same, *of_workspace))


def _blank_actors(tx: Connection, period: timedelta) -> int:
    """Blank the names of actors and the previous attributes in old changes; return the number of changes searched."""
    done_to = tx.execute(select(MirrorState.actors_blanked_to).with_for_update()).scalar_one()
    page = select(Change.id, Change.at < db_ago(period)).where(Change.id > done_to).order_by(Change.id).limit(BATCH)
    # Stop at the first change that is not old: times may not ascend with the ids.
    old = [id for id, _ in takewhile(lambda row: row[1], tx.execute(page).all())]
    if old:
        of_page = Change.id.between(old[0], old[-1])
        tx.execute(update(Change).where(of_page, has_actor_data()).values(ACTOR_BLANKED))
        tx.execute(update(MirrorState).values(actors_blanked_to=old[-1]))
    return len(old)


def _delete_changes(tx: Connection, *which: ColumnElement[bool]) -> int:
    """Delete changes and record the last deleted one, so that a reader behind it gets `CursorGoneError`."""
    old = tx.execute(select(Change.id, Change.at).where(*which).order_by(Change.id).limit(BATCH)).all()
    if old:
        tx.execute(delete(Change).where(Change.id.in_([id for id, _ in old])))
        last, at = old[-1]
        advance = update(MirrorState).where(MirrorState.changes_dropped_to < last)
        tx.execute(advance.values(changes_dropped_to=last, changes_dropped_at=at))
    return len(old)
