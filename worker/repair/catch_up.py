"""Catch-up: reads the events API into the inbox, so that events whose webhooks were lost are applied too.

Each catch-up reads the pages after a cursor: the newest event that is older than the lag, because WorkOS withholds its
newest events from ascending reads for a few seconds. WorkOS can also return events hours late, either at the end of its
list or at their own time, before the cursor (docs/workos.md). So every ten minutes the last two hours are read again.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, and_, exists, func, or_, select, update

from models.database import in_transaction, read_transaction
from models.tables import Action, Event, EventStatus, Mirror
from models.types import db_now, db_now_plus, db_plus, inline_literal
from worker import audit
from worker.decision.payload import is_id, parse_time
from worker.errors import ConfigurationError, CursorLostError, PayloadError
from worker.inbox.store import Delivery, accept_from_api
from worker.leases import Lease
from worker.repair.event_log import MARGIN, OLDEST, EventLog
from worker.workos_api.client import Page, WorkOSClient

log = structlog.get_logger()

LAG = timedelta(seconds=60)
LATEST = timedelta(hours=2)
"""Longest delay of an event in the events API with which catch-up still finds it."""
REREAD_EVERY = timedelta(minutes=10)
REMEDY = "WorkOS keeps events for 90 days; run: workos-sync resync"

Stored = tuple[datetime | None, Delivery]
"""The time of an event (UTC; None if it has no valid time), and the event."""


class Report(NamedTuple):
    """The result of a catch-up."""

    returned: int
    """Events read. Events of the last two hours that were read again count only if they were new."""
    new: int
    complete_to: datetime
    """The inbox is complete up to this time (UTC)."""
    missed: bool = False
    """Whether some events had expired at WorkOS since the last catch-up. A resync repairs their effects."""


class Place(NamedTuple):
    """How far catch-up has read. All times are aware, in UTC."""

    cursor: str | None
    """The id of the event to continue after."""
    read_to: datetime
    """Every event up to this time is in the inbox, except those that WorkOS returned late."""
    inbox_to: datetime | None
    """The inbox was complete up to this time; None before the first catch-up has finished."""
    began: datetime | None
    """Earlier events are not needed, because the first resync covers them; None if the database is not bound."""

    def since(self, time: datetime, now: datetime) -> datetime:
        """Return the time to read from, so that late events from before `time` are found."""
        return max(at for at in (time - LATEST, now - OLDEST + MARGIN, self.began) if at is not None)


def catch_up(engine: Engine, workos: WorkOSClient, held: Lease | None = None, lag: timedelta = LAG) -> Report:
    """Read from the cursor to the newest event of the events API. Events older than `lag` then count as complete.

    Without a cursor, or if WorkOS refuses it, start two hours before the time up to which events were read.

    Raises:
        WorkOSUnavailableError: WorkOS did not answer, or refuses some event types. Events that it returned are stored,
            but the inbox does not count as complete.
        LeaseLostError: another worker took over the run whose lease is `held`.
    """
    now = workos.now()
    # The same for all pages: a later page has later events, but not those that an earlier page did not have yet.
    settled = now - lag
    place = _place(engine, settled)
    events = EventLog(workos, now)
    returned = new = late = 0
    for page in _unread(events, place, now):
        new += in_transaction(engine, _take, page, held, settled)
        returned += len(page.items)
    # The first catch-up that finishes after a full ten minutes of the clock reads the last two hours again.
    if place.inbox_to is not None and _ten_minutes(place.inbox_to) != _ten_minutes(settled):
        _, late = _store_since(engine, events, place.since(_ten_minutes(place.inbox_to), now))
        if late:
            log.warning("late_events_found", number=late)
    events.require_all_types()
    in_transaction(engine, _complete, settled, held)
    update_complete_to(engine)
    log.info("catch_up_finished", returned=returned, new=new, late=late)
    # Not the cursor: a catch-up that failed may have moved it past events that are missing.
    complete = place.inbox_to or place.began or place.read_to
    missed = complete < now - OLDEST
    if missed:
        log.error("events_missed", after=complete.isoformat(), remedy=REMEDY)
    return Report(returned + late, new + late, settled, missed)


def catch_up_since(engine: Engine, workos: WorkOSClient, since: datetime, lag: timedelta = LAG) -> Report:
    """Read all events since a time (aware). The cursor does not move.

    Raises:
        ConfigurationError: the time is more than 90 days ago, or in the future.
        WorkOSUnavailableError: as for `catch_up`.
    """
    now = workos.now()
    _require_readable(since, now)
    events = EventLog(workos, now)
    returned, new = _store_since(engine, events, since)
    events.require_all_types()
    return Report(returned, new, now - lag)


def catch_up_by_hand(
    engine: Engine, workos: WorkOSClient, actor: audit.Actor, since: datetime | None, lag: timedelta = LAG
) -> Report:
    """Catch up for an operator: as `catch_up_since`, or as `catch_up` if `since` is None. The audit records it."""
    if since is not None:
        _require_readable(since, workos.now())
    shown = since and since.isoformat()
    in_transaction(engine, audit.note, actor, Action.CATCH_UP, since=shown)
    return catch_up(engine, workos, lag=lag) if since is None else catch_up_since(engine, workos, since, lag)


def _require_readable(since: datetime, now: datetime) -> None:
    if since < now - OLDEST:
        raise ConfigurationError(f"--since {since:%Y-%m-%d}: {REMEDY}")
    if since > now:
        raise ConfigurationError(
            f"--since {since:%Y-%m-%d %H:%M:%S} is in the future: at WorkOS it is {now:%Y-%m-%d %H:%M:%S}"
        )


def _place(engine: Engine, default: datetime) -> Place:
    columns = (Mirror.cursor, Mirror.cursor_at, Mirror.inbox_to, Mirror.backfill_from)
    with read_transaction(engine) as tx:
        cursor, cursor_at, inbox_to, began = tx.execute(select(*columns)).one()
    # Without new events the cursor does not move and becomes too old for WorkOS. `inbox_to` still advances.
    return Place(cursor, max((at for at in (cursor_at, inbox_to) if at), default=default), inbox_to, began)


def _unread(events: EventLog, place: Place, now: datetime) -> Iterator[Page]:
    """Yield the pages after the cursor; without a usable cursor, those since the time up to which events were read."""
    since = place.since(place.read_to, now)
    if place.cursor is not None:
        try:
            yield from events.after(place.cursor)
        except CursorLostError:
            log.warning("cursor_lost", cursor=place.cursor, reads_from=since.isoformat())
        else:
            return
    yield from events.since(since)


def _store_since(engine: Engine, events: EventLog, start: datetime) -> tuple[int, int]:
    """Store the events since a time; return how many were read, and how many of them are new."""
    returned = new = 0
    for page in events.since(start):
        returned += len(page.items)
        if unknown := _unknown(engine, _valid_events(page)):
            new += in_transaction(engine, _store, unknown)
    return returned, new


def _ten_minutes(time: datetime) -> datetime:
    """Return a time rounded down to a full ten minutes."""
    return time - (time - datetime.fromtimestamp(0, time.tzinfo)) % REREAD_EVERY


def _valid_events(page: Page) -> list[Stored]:
    """Return the events of a page. One without a valid id or type is logged and skipped."""
    valid: list[Stored] = []
    for item in page.items:
        at = parse_time(item.get("created_at")) if isinstance(item, dict) else None
        try:
            valid.append((at, Delivery.of(item, json.dumps(item).encode())))
        except PayloadError as error:
            log.warning("event_invalid", error=str(error), **_described(item, at))
    return valid


def _described(item: object, at: datetime | None) -> dict[str, str | None]:
    """Return what may be logged about an invalid event: its id, type and time, each only if it is valid."""
    if not isinstance(item, dict):
        return {"found": type(item).__name__}
    id, kind = (
        value if isinstance(value := item.get(name), str) and is_id(value) else None for name in ("id", "event")
    )
    return {"id": id, "type": kind, "created_at": at.isoformat() if at else None}


def _store(tx: Connection, events: Sequence[Stored]) -> int:
    """Store events; return how many are new."""
    # Sorted, so that two catch-ups do not deadlock.
    in_order = sorted(events, key=lambda event: event[1])
    return sum(accept_from_api(tx, delivery, occurred_at) for occurred_at, delivery in in_order)


def _unknown(engine: Engine, events: list[Stored]) -> list[Stored]:
    """Return the events that the API has not returned before. Unlike storing them again, the query takes no locks."""
    ids = [delivery.id for _, delivery in events]
    with read_transaction(engine) as tx:
        known = set(tx.execute(select(Event.id).where(Event.id.in_(ids), Event.api_at.is_not(None))).scalars())
    return [event for event in events if event[1].id not in known]


def _take(tx: Connection, page: Page, held: Lease | None, settled: datetime) -> int:
    """Store a page, move the cursor forward to its newest event from before `settled`, and count new events."""
    if held is not None:
        held.check(tx)
    # Lock this row first: a drain also locks it before events, so that the two do not deadlock.
    tx.execute(select(Mirror.id).with_for_update())
    events = _valid_events(page)
    new = _store(tx, events)
    if settled_events := [(at, delivery.id) for at, delivery in events if at and at < settled]:
        at, id = max(settled_events)
        forward = or_(Mirror.cursor_at.is_(None), Mirror.cursor_at <= at)
        tx.execute(update(Mirror).where(forward).values(cursor=id, cursor_at=at))
    return new


def _complete(tx: Connection, complete_to: datetime, held: Lease | None) -> None:
    """Record that the inbox is complete up to a time. Its events must still be applied: see `update_complete_to`."""
    if held is not None:
        held.check(tx)
    forward = or_(Mirror.inbox_to.is_(None), Mirror.inbox_to < complete_to)
    # A recorded time is kept until it is reached; replacing it with each catch-up could postpone it forever. But a time
    # from before the first resync cannot end the backfill, so it is replaced.
    replaceable = or_(Mirror.inbox_at.is_(None), Mirror.inbox_at < Mirror.last_resync_at)
    tx.execute(update(Mirror).where(forward, replaceable).values(inbox_to=complete_to, inbox_at=db_now()))


def update_complete_to(engine: Engine) -> None:
    """Set `complete_to` to the time up to which the inbox was complete, once all of those events are processed.

    These are all events received by then, and all events from before that time that the API returned since, late ones
    too. The first time after the first full resync, this ends the backfill.
    """
    received = Event.received_at <= Mirror.inbox_at
    shown_since = and_(Event.api_at >= Mirror.inbox_at, Event.occurred_at <= Mirror.inbox_to)
    waiting = exists().where(Event.status == inline_literal(EventStatus.PENDING), or_(received, shown_since))
    applied = (Mirror.inbox_at.is_not(None), ~waiting)
    first = (Mirror.backfilled_at.is_(None), Mirror.last_resync_at <= Mirror.inbox_at)
    with read_transaction(engine) as tx:
        if tx.execute(select(Mirror.id).where(*applied)).one_or_none() is None:
            return

    def advance(tx: Connection) -> None:
        # Lock first: an update that waited for the lock would see the new row but the old events.
        tx.execute(select(Mirror.id).with_for_update())
        tx.execute(update(Mirror).where(*applied, *first).values(backfilled_at=db_now()))
        tx.execute(update(Mirror).where(*applied).values(complete_to=Mirror.inbox_to, inbox_at=None))

    in_transaction(engine, advance)


def gaps(engine: Engine, gap_seconds: float) -> tuple[int, int]:
    """Return the numbers of gaps and of late webhooks.

    A gap is an event that the events API returned more than `gap_seconds` ago and that no webhook has delivered. A
    webhook is late if it arrived more than `gap_seconds` after that.
    """
    gap = (Event.webhook_at.is_(None), Event.api_at < db_now_plus(-gap_seconds))
    late = (Event.webhook_at > Event.api_at, Event.webhook_at > db_plus(Event.api_at, gap_seconds))
    with read_transaction(engine) as tx:
        count = select(func.count()).select_from(Event)
        return tx.execute(count.where(*gap)).scalar_one(), tx.execute(count.where(*late)).scalar_one()
