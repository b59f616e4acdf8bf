"""The inbox: one row for every event id. What is committed here is never lost; Redis only says that it is here."""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Executable, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from models.database import reading, writing
from models.tables import Batch, Event, EventStatus
from models.types import db_in, db_now


def receive(engine: Engine, event_id: str, type: str, body: bytes, *, source: str) -> bool:
    """Commit one event and return whether it is new; a known id only counts one more delivery.

    Args:
        engine: the database.
        event_id: WorkOS's id of the event.
        type: the event's type.
        body: the raw bytes as received.
        source: `webhook` or `events_api`.

    Raises:
        sqlalchemy.exc.DBAPIError: nothing was committed.
    """
    event = {"id": event_id, "type": type, "body": body, "source": source}
    with writing(engine) as tx:
        return bool(tx.execute(_accept(engine.dialect.name, source), event).scalar_one() == 1)


def store(tx: Connection, event: Mapping[str, Any]) -> bool:
    """Store an event of the events API in `tx` and return whether it is new.

    Args:
        tx: the caller's transaction.
        event: as the API returned it; `id` and `event` are usable as keys.
    """
    row = {"id": event["id"], "type": event["event"], "body": json.dumps(event).encode(), "source": "events_api"}
    return bool(tx.execute(_accept(tx.dialect.name, "events_api"), row).scalar_one_or_none() == 1)


@functools.cache
def _accept(dialect_name: str, source: str) -> Executable:
    # Built once: building it took as long as running it.
    insert: Any = postgresql.insert if dialect_name == "postgresql" else sqlite.insert
    first = Event.webhook_at if source == "webhook" else Event.api_at
    again = {
        "deliveries": Event.deliveries + 1,
        "last_delivered_at": db_now(),
        first.key: func.coalesce(first, db_now()),
    }
    # What the events API returns again, as it does each time for the newest, is no further delivery.
    known = first.is_(None) if source == "events_api" else None
    new = insert(Event).values({first.key: db_now()})
    return (  # type: ignore[no-any-return]  # the two dialects' inserts share no type
        new.on_conflict_do_update(index_elements=[Event.id], set_=again, where=known).returning(Event.deliveries)
    )


class Backlog(NamedTuple):
    """How much is waiting. `oldest_seconds` is the age of the oldest pending event, 0 if there is none."""

    pending: int
    failed: int
    oldest_seconds: float


def backlog(engine: Engine) -> Backlog:
    """Return what waits in the inbox now."""
    pending, failed = Event.status == EventStatus.PENDING, Event.status == EventStatus.FAILED
    with reading(engine) as tx:
        count, oldest, now = tx.execute(
            select(func.count(), func.min(Event.received_at), db_now()).where(pending)
        ).one()
        failures = tx.execute(select(func.count()).select_from(Event).where(failed)).scalar_one()
    return Backlog(count, failures, max(0.0, (now - oldest).total_seconds()) if count else 0.0)


def needs_drain(engine: Engine, *, older_than: float) -> bool:
    """Whether something waits that no drain took within `older_than` seconds, half-done batches included."""
    due = exists().where(Event.status == EventStatus.PENDING, Event.due_at < db_in(-older_than))
    waiting = exists().where((Batch.started_at.is_(None)) | (Batch.started_at < db_in(-older_than)))
    with reading(engine) as tx:
        return bool(tx.execute(select(due | waiting)).scalar_one())
