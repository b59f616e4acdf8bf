"""The inbox: one row for each event id. A committed event is never lost; Redis only wakes the workers."""

import functools
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from zlib import crc32

from sqlalchemy import Connection, Engine, Executable, Select, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from models.database import read_transaction, write_transaction
from models.tables import Batch, Event, EventSource, EventStatus
from models.types import db_now, db_now_plus, inline_literal
from worker.decision.payload import is_id
from worker.errors import PayloadError

MAX_COUNTED = 10_000
PARTITION_KEYS = 256


class ReceivedEvent(NamedTuple):
    """An event from a webhook or from the events API. `body` is the raw JSON."""

    id: str
    type: str
    body: bytes
    partition_key: int
    """The same for all events of an object, below `PARTITION_KEYS`. It decides only which drain applies the event."""
    occurred_at: datetime | None = None
    """Aware; None if it is not known yet."""

    @classmethod
    def of(cls, event: object, body: bytes, occurred_at: datetime | None = None) -> "ReceivedEvent":
        """Return the event that was parsed from `body`.

        Raises:
            PayloadError: the id or the type is missing or cannot be a key. The rest is not checked yet.
        """
        if not isinstance(event, dict):
            raise PayloadError("body", "is not an object")
        for name in ("id", "event"):
            if not isinstance(event.get(name), str) or not is_id(event[name]):
                raise PayloadError(name, "cannot be a key")
        data = event.get("data")
        object_id = data.get("id") if isinstance(data, dict) else None
        key = crc32(object_id.encode(errors="replace")) % PARTITION_KEYS if isinstance(object_id, str) else 0
        return cls(event["id"], event["event"], body, key, occurred_at)


def accept_webhooks(engine: Engine, events: Sequence[ReceivedEvent]) -> list[bool]:
    """Commit events in one transaction and return, for each, whether it is new.

    If an event is known, or occurs twice in `events`, only its number of deliveries is incremented.

    Raises:
        sqlalchemy.exc.DBAPIError: nothing was committed.
    """
    new = [False] * len(events)
    remaining = list(enumerate(events))
    with write_transaction(engine) as tx:
        while remaining:
            # A statement may contain each id once. Sorted ids cannot deadlock with another process.
            first = {event.id: (place, event) for place, event in reversed(remaining)}
            rows = [{**first[id][1]._asdict(), "source": EventSource.WEBHOOK} for id in sorted(first)]
            for id, times in tx.execute(_accept(tx.dialect.name, EventSource.WEBHOOK), rows):
                new[first[id][0]] = times == 1
            remaining = [(place, event) for place, event in remaining if first[event.id][0] != place]
    return new


def accept_from_api(tx: Connection, event: ReceivedEvent) -> bool:
    """Store an event of the events API; return whether it is new."""
    row = {**event._asdict(), "source": EventSource.EVENTS_API}
    accepted = tx.execute(_accept(tx.dialect.name, EventSource.EVENTS_API), row).one_or_none()
    return accepted is not None and accepted.deliveries == 1


@functools.cache
def _accept(dialect_name: str, source: EventSource) -> Executable:
    # Cached: building the statement takes as long as running it.
    new = (postgresql.insert if dialect_name == "postgresql" else sqlite.insert)(Event)
    first = Event.webhook_at if source is EventSource.WEBHOOK else Event.api_at
    again = {
        "deliveries": Event.deliveries + 1,
        "last_delivered_at": db_now(),
        first.key: func.coalesce(first, db_now()),
    }
    where = None
    if source is EventSource.EVENTS_API:
        again["occurred_at"] = func.coalesce(Event.occurred_at, new.excluded.occurred_at)
        where = first.is_(None)  # The API returns its newest events repeatedly. That is not another delivery.
    upsert = new.values({first.key: db_now()}).on_conflict_do_update(index_elements=[Event.id], set_=again, where=where)
    return upsert.returning(Event.id, Event.deliveries)


def probe(engine: Engine) -> None:
    """Store an event and roll back; raise `sqlalchemy.exc.DBAPIError` if events cannot be stored now."""
    event = {"id": f"probe_{uuid.uuid4().hex}", "type": "probe", "body": b"", "source": EventSource.WEBHOOK}
    with engine.connect() as connection, connection.begin() as tx:
        connection.execute(_accept(engine.dialect.name, EventSource.WEBHOOK), event)
        tx.rollback()


class Backlog(NamedTuple):
    """Pending and failed events, each counted up to 10,000, and for how long the oldest pending event has waited, or 0.

    An event that is replayed waits since its replay.
    """

    pending: int
    failed: int
    oldest_seconds: float


def backlog(engine: Engine) -> Backlog:
    """Return how many events are waiting now."""

    def number(status: EventStatus) -> Select[int]:
        some = select(Event.id).where(Event.status == inline_literal(status)).limit(MAX_COUNTED)
        return select(func.count()).select_from(some.subquery())

    with read_transaction(engine) as tx:
        is_pending = Event.status == inline_literal(EventStatus.PENDING)
        first = select(func.min(Event.received_at)).where(is_pending, Event.replays == 0).scalar_subquery()
        replayed = select(func.min(Event.due_at)).where(is_pending, Event.replays > 0).scalar_subquery()
        since = select(func.coalesce(first, db_now()), func.coalesce(replayed, db_now()), db_now())
        oldest, oldest_replayed, now = tx.execute(since).one()
        count = tx.execute(number(EventStatus.PENDING)).scalar_one()
        failures = tx.execute(number(EventStatus.FAILED)).scalar_one()
    return Backlog(count, failures, max(0.0, (now - min(oldest, oldest_replayed)).total_seconds()))


def needs_drain(engine: Engine, *, older_than: float) -> bool:
    """Return whether an event or a batch has been waiting for a drain for more than `older_than` seconds."""
    due = exists().where(Event.status == inline_literal(EventStatus.PENDING), Event.due_at < db_now_plus(-older_than))
    waiting = exists().where((Batch.started_at.is_(None)) | (Batch.started_at < db_now_plus(-older_than)))
    with read_transaction(engine) as tx:
        return bool(tx.execute(select(due | waiting)).scalar_one())
