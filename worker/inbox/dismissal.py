"""Dismissal: marks failed events as not needed. They are neither retried nor reported."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Engine, select, update

from models.database import in_transaction, transactional
from models.tables import Action, Event, EventStatus
from models.types import inline_literal
from worker import audit
from worker.inbox.selection import Selection
from worker.mirror import uncertainty

DISMISSED_AT_ONCE = 1_000
"""Events dismissed in one transaction."""


@transactional
def dismiss(tx: Connection, ids: Sequence[str], actor: audit.Actor) -> int:
    """Mark failed events as dismissed; return how many of `ids` had failed.

    Raises:
        ConfigurationError: `actor` gives no reason.
    """
    dismissed = _dismiss(tx, Event.id.in_(ids), actor)
    for id, organization_id in dismissed:
        about = {"kind": "event", "object_id": id, "organization_id": organization_id}
        audit.note(tx, actor, Action.DISMISS_EVENT, **about)
    return len(dismissed)


def dismiss_all(engine: Engine, selection: Selection, actor: audit.Actor, failed_by: datetime | None = None) -> int:
    """Mark all failed events of a selection as dismissed; return their number.

    With `failed_by`, an aware time, only those that had failed by then. The audit gets one row for each
    `DISMISSED_AT_ONCE` events.

    Raises:
        ConfigurationError: `actor` gives no reason.
    """
    total = 0
    while number := in_transaction(engine, _dismiss_some, selection, actor, failed_by):
        total += number
    return total


def _dismiss_some(tx: Connection, selection: Selection, actor: audit.Actor, failed_by: datetime | None) -> int:
    failed = [*selection.conditions(), Event.status == inline_literal(EventStatus.FAILED)]
    if failed_by is not None:
        failed.append(Event.processed_at <= failed_by)
    some = select(Event.id).where(*failed).limit(DISMISSED_AT_ONCE)
    number = len(_dismiss(tx, Event.id.in_(some), actor))
    if number:
        wanted = selection.as_json()
        audit.note(tx, actor, Action.DISMISS_EVENT, kind="event", selection=wanted, events=number)
    return number


def _dismiss(tx: Connection, which: ColumnElement[bool], actor: audit.Actor) -> list[tuple[str, str | None]]:
    """Dismiss the failed events that meet a condition; return id and workspace of each, sorted."""
    failed = update(Event).where(which, Event.status == EventStatus.FAILED)
    values = {"status": EventStatus.DISMISSED, "dismissed_by": actor.who, "dismissed_why": actor.reason}
    dismissed = tx.execute(failed.values(values).returning(Event.id, Event.organization_id)).all()
    uncertainty.clear_after_events(tx, [id for id, _ in dismissed])
    return sorted((id, organization_id) for id, organization_id in dismissed)
