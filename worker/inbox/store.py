"""The inbox: one row for each event id. A committed event is never lost; Redis only wakes the workers."""

import functools
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple
from zlib import crc32

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    bindparam,
    column,
    exists,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from models.bulk import dialect_insert, is_any_of
from models.database import read_transaction, reconnecting, single_statement
from models.outcomes import Outcome
from models.tables import Batch, Event, EventSource, EventStatus
from models.types import db_now, db_now_plus, inline_literal
from worker import traces
from worker.decision.payload import is_id
from worker.decision.payload_secrets import without_secrets
from worker.errors import PayloadError
from worker.kinds import READERS

MAX_COUNTED = 10_000
ROW = ("id", "type", "body", "partition_key", "traceparent", "deliveries")
"""The columns of an event that is stored from a webhook."""
TEST_TYPE = "workos_sync.test"
"""The type of events that an operator sends to test the endpoint. They do not count as deliveries of WorkOS."""
TEST_HEADER = "WorkOS-Sync-Test"
"""The header of their deliveries, so that a refused one is not counted as a refused delivery of WorkOS."""
PARTITION_KEYS = 256
IGNORED_EARLIER = (Event.outcome == Outcome.IGNORED, Event.status == EventStatus.DONE, Event.body.is_(None))
"""The conditions for an ignored event without its payload. If `READERS` has its type, an older release ignored it."""


class ReceivedEvent(NamedTuple):
    """An event from a webhook or from the events API. `body` is the raw JSON, without secrets (`payload_secrets`)."""

    id: str
    type: str
    body: bytes
    partition_key: int
    """Below `PARTITION_KEYS`. Usually the same for all events of an object; 0 if `data` has no id.

    It decides only which drain applies the event.
    """
    occurred_at: datetime | None = None
    """With time zone; None if it is not known yet."""
    traceparent: str | None = None
    """The span that received it, if its trace is sent."""

    @classmethod
    def of(cls, event: object, body: bytes, occurred_at: datetime | None = None) -> "ReceivedEvent":
        """Return the event that was parsed from `body`. The secrets in `body` are removed.

        Raises:
            PayloadError: the id or the type is missing or too long, or cannot be a key. The rest is not checked yet.
        """
        if not isinstance(event, dict):
            raise PayloadError("body", "is not an object")
        for name in ("id", "event"):
            if not isinstance(event.get(name), str) or not is_id(event[name]):
                raise PayloadError(name, "cannot be a key")
        data = event.get("data")
        object_id = data.get("id") if isinstance(data, dict) else None
        key = crc32(object_id.encode(errors="replace")) % PARTITION_KEYS if isinstance(object_id, str) else 0
        return cls(
            event["id"], event["event"], without_secrets(event["event"], body), key, occurred_at, traces.current()
        )


def accept_webhooks(engine: Engine, events: Sequence[ReceivedEvent]) -> list[bool]:
    """Commit events and return, for each, whether it is new. On PostgreSQL this takes one round trip.

    If an event is known, or occurs twice in `events`, only its delivery columns change (`deliveries`,
    `last_delivered_at`, `webhook_at`).

    Raises:
        sqlalchemy.exc.DBAPIError: the commit failed, or its result is unknown. Accepting the events again is safe.
    """
    counts = Counter(event.id for event in events)
    distinct = {event.id: event for event in events}
    # A statement may contain each id once. Sorted ids cannot deadlock with another process.
    rows = [(event, counts[id]) for id, event in sorted(distinct.items())]
    deliveries = reconnecting(partial(_store, engine, rows))
    seen: set[str] = {id for id in distinct if deliveries[id] > counts[id]}
    are_new = []
    for event in events:
        are_new.append(event.id not in seen)
        seen.add(event.id)
    return are_new


def _store(engine: Engine, rows: list[tuple[ReceivedEvent, int]]) -> dict[str, int]:
    """Store events, each with its number of deliveries, and return the total for each id."""
    with single_statement(engine) as connection:
        return _insert(connection, rows)


def _insert(connection: Connection, rows: list[tuple[ReceivedEvent, int]]) -> dict[str, int]:
    values = [(event.id, event.type, event.body, event.partition_key, event.traceparent, n) for event, n in rows]
    if connection.dialect.name == "postgresql":
        arrays = dict(zip(ROW, map(list, zip(*values, strict=True)), strict=True))
        found = connection.execute(_accept_arrays(), arrays)
    else:
        found = connection.execute(_accept_values(), [dict(zip(ROW, row, strict=True)) for row in values])
    return {row.id: row.deliveries for row in found}


def accept_test(engine: Engine, event: ReceivedEvent) -> bool:
    """Commit a test event, which has no `webhook_at` because WorkOS did not deliver it; return whether it is new.

    Raises:
        sqlalchemy.exc.DBAPIError: the commit failed, or its result is unknown.
    """
    with single_statement(engine) as connection:
        insert = dialect_insert(connection, Event).values(source=EventSource.WEBHOOK, **event._asdict())
        stored = insert.on_conflict_do_nothing().returning(Event.id)
        return connection.execute(stored).one_or_none() is not None


def accept_from_api(tx: Connection, event: ReceivedEvent) -> bool | None:
    """Store an event of the events API; return whether it is new, or None if the API has returned it before."""
    first = dialect_insert(tx, Event).values(source=EventSource.EVENTS_API, api_at=db_now(), **event._asdict())
    known = {
        "deliveries": Event.deliveries + 1,
        "last_delivered_at": db_now(),
        "api_at": db_now(),
        "occurred_at": func.coalesce(Event.occurred_at, first.excluded.occurred_at),
    }
    # The API returns its newest events repeatedly. That is not another delivery.
    upsert = first.on_conflict_do_update(index_elements=[Event.id], set_=known, where=Event.api_at.is_(None))
    deliveries = tx.execute(upsert.returning(Event.deliveries)).scalar_one_or_none()
    return None if deliveries is None else deliveries == 1


def accept_earlier(tx: Connection, events: Sequence[ReceivedEvent]) -> int:
    """Store events from before this release mirrored their types, sorted by id; return how many became pending.

    New ones get no `api_at`: WorkOS was not asked to send webhooks for these types, so none is missing.
    """
    new = 0
    for event in events:
        row = dialect_insert(tx, Event).values(source=EventSource.EVENTS_API, **event._asdict())
        new += tx.execute(row.on_conflict_do_nothing()).rowcount
    return new + restore_payloads(tx, events)


def restore_payloads(tx: Connection, events: Sequence[ReceivedEvent]) -> int:
    """Make events pending again that an older release ignored, and store their payloads; return how many.

    An older release ignores events of types that it does not mirror, and keeps no payload of them.
    """
    ids = [event.id for event in events if event.type in READERS]
    query = select(Event.id).where(is_any_of(tx, Event.id, ids), *IGNORED_EARLIER).order_by(Event.id).with_for_update()
    restored = set(tx.execute(query).scalars()) if ids else set()
    again = {"status": EventStatus.PENDING, "due_at": db_now(), "attempts": 0, "replays": Event.replays + 1}
    for event in events:
        if event.id in restored:
            tx.execute(update(Event).where(Event.id == event.id).values(again | {"body": event.body}))
    return len(restored)


@functools.cache
def _accept_values() -> Executable:
    """Return the statement for SQLite that stores a row from parameters named as in `ROW`."""
    # Cached: building the statement takes as long as running it.
    return _adding_deliveries(sqlite.insert(Event).values(source=EventSource.WEBHOOK, webhook_at=db_now()))


@functools.cache
def _accept_arrays() -> Executable:
    """Return the statement that stores the rows in arrays named as in `ROW`. Its text is the same for any number."""
    columns = Event.__table__.c
    arrays = [bindparam(name, type_=postgresql.ARRAY(columns[name].type)) for name in ROW]
    given = func.unnest(*arrays).table_valued(*(column(name, columns[name].type) for name in ROW))
    given = given.render_derived("given")
    chosen = select(*given.c, literal(EventSource.WEBHOOK, columns.source.type), db_now())
    insert = postgresql.insert(Event).from_select([*ROW, "source", "webhook_at"], chosen)
    return _adding_deliveries(insert)


def _adding_deliveries(insert: postgresql.Insert | sqlite.Insert) -> Executable:
    known = {
        "deliveries": Event.deliveries + insert.excluded.deliveries,
        "last_delivered_at": db_now(),
        "webhook_at": func.coalesce(Event.webhook_at, db_now()),
    }
    upsert = insert.on_conflict_do_update(index_elements=[Event.id], set_=known)
    return upsert.returning(Event.id, Event.deliveries)


def probe(engine: Engine) -> None:
    """Store an event and roll back; raise `sqlalchemy.exc.DBAPIError` if events cannot be stored now."""
    event = ReceivedEvent(f"probe_{uuid.uuid4().hex}", "probe", b"", partition_key=0)
    with engine.connect() as connection, connection.begin() as tx:
        _insert(connection, [(event, 1)])
        tx.rollback()


class Backlog(NamedTuple):
    """The number of pending events, up to 10,000, and how long the oldest of them has waited.

    The wait of a replayed event starts at the replay. It is 0 if no event is pending.
    """

    pending: int
    oldest_seconds: float


def backlog(tx: Connection) -> Backlog:
    """Return how many events are waiting now."""
    is_pending = Event.status == inline_literal(EventStatus.PENDING)
    first = select(func.min(Event.received_at)).where(is_pending, Event.replays == 0).scalar_subquery()
    replayed = select(func.min(Event.due_at)).where(is_pending, Event.replays > 0).scalar_subquery()
    since = (func.coalesce(first, db_now()), func.coalesce(replayed, db_now()), db_now())
    some = select(Event.id).where(is_pending).limit(MAX_COUNTED).subquery()
    number = select(func.count()).select_from(some).scalar_subquery()
    oldest, oldest_replayed, now, pending = tx.execute(select(*since, number)).one()
    return Backlog(pending, max(0.0, (now - min(oldest, oldest_replayed)).total_seconds()))


def needs_drain(engine: Engine, *, older_than: float) -> bool:
    """Return whether events need another drain.

    They do if an event has been due, or a batch in progress, for more than `older_than` seconds, or if a recorded batch
    was not started.
    """
    due = exists().where(Event.status == inline_literal(EventStatus.PENDING), Event.due_at < db_now_plus(-older_than))
    waiting = exists().where((Batch.started_at.is_(None)) | (Batch.started_at < db_now_plus(-older_than)))
    with read_transaction(engine) as tx:
        return bool(tx.execute(select(due | waiting)).scalar_one())
