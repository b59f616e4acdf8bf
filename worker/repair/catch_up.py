"""Catch-up: reads the events API into the inbox, so that events whose webhooks were lost are applied too.

Each catch-up reads the pages after a cursor: the newest event that is older than the lag, because WorkOS withholds its
newest events from ascending reads for a few seconds. WorkOS can also return events hours late, either at the end of its
list or at their own time, before the cursor (docs/workos.md). So catch-up rereads the last two hours every ten minutes.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, and_, exists, func, or_, select, update

from models.database import in_transaction, read_transaction
from models.tables import Action, Event, EventStatus, MirrorState, Tail
from models.types import db_now, db_now_plus, db_plus, inline_literal
from worker import audit
from worker.decision.payload import is_id, parse_time
from worker.errors import ConfigurationError, PayloadError
from worker.inbox.store import ReceivedEvent, accept_from_api, restore_payloads
from worker.leases import Lease
from worker.repair.event_log import OLDEST, READABLE, EventLog, Progressed
from worker.workos_api.client import Page, WorkOSClient

log = structlog.get_logger()

LAG = timedelta(seconds=60)
"""How long WorkOS may withhold its newest events."""
MAX_EVENT_DELAY = timedelta(hours=2)
"""The longest delay with which WorkOS may return an event that catch-up still finds."""
REREAD_EVERY = timedelta(minutes=10)
REMEDY = "WorkOS keeps events for 90 days; run: workos-sync resync"


class Report(NamedTuple):
    """The result of a catch-up."""

    returned: int
    """Number of events read. Of the last two hours, which are read again, only the new events count."""
    new: int
    received_up_to: datetime
    """Every event up to this time (UTC) is in the inbox; with `since`, only those since then."""
    missed: bool = False
    """Whether some events had expired at WorkOS since the last catch-up. A resync repairs their effects."""


class Position(NamedTuple):
    """How far catch-up has read. All times are aware, in UTC."""

    cursor: str | None
    """The id of the event to continue after."""
    read_to: datetime
    """Where to resume without a cursor: the later of `cursor_at` and `inbox_to` (`models.tables.MirrorState`)."""
    inbox_to: datetime | None
    """Every event up to this time is in the inbox; None before the first catch-up has finished."""
    backfill_from: datetime | None
    """Earlier events are not needed, because the first resync covers them; None if the database is not bound."""

    def since(self, time: datetime, now: datetime) -> datetime:
        """Return `MAX_EVENT_DELAY` before `time`, or the oldest time whose events are needed and kept, if later."""
        starts = (time - MAX_EVENT_DELAY, now - READABLE, self.backfill_from)
        return max(at for at in starts if at is not None)


def catch_up(
    engine: Engine,
    workos: WorkOSClient,
    lease: Lease | None = None,
    lag: timedelta = LAG,
    progressed: Progressed = lambda _page: None,
) -> Report:
    """Read the events API from the cursor to its newest event. Up to `lag` ago, the inbox then counts as complete.

    Without a cursor, or if WorkOS refuses it, start two hours before the time up to which events have been read.

    Raises:
        WorkOSError: WorkOS did not answer, or refuses some event types. Events that it returned are stored,
            but the inbox does not count as complete.
        LeaseLostError: another worker took over the run of `lease`.
    """
    now = workos.now()
    # WorkOS withholds no events from before this time. Computed once: if it advanced with each page, the cursor could
    # pass events that WorkOS was still withholding when an earlier page was read.
    inbox_to = now - lag
    position = _position(engine, inbox_to)
    write = lease.in_transaction if lease else in_transaction
    events = EventLog(workos, now, progressed=progressed)
    returned = new = late = 0
    for page in events.after_or_since(position.cursor, position.since(position.read_to, now)):
        new += write(engine, _store_and_advance, page, inbox_to)
        returned += len(page.items)
    if (start := _reread_from(position, inbox_to)) is not None:
        _, late = _store_since(engine, events, position.since(start, now))
        if late:
            log.warning("late_events_found", number=late)
    events.require_all_types()
    write(engine, _set_inbox_to, inbox_to)
    update_complete_to(engine)
    log.info("catch_up_finished", returned=returned, new=new, late=late)
    # Not the cursor: a failed catch-up may have moved it past events that it did not store.
    complete_before = position.inbox_to or position.backfill_from or position.read_to
    missed = complete_before < now - OLDEST
    if missed:
        log.error("events_missed", after=complete_before.isoformat(), remedy=REMEDY)
    return Report(returned + late, new + late, inbox_to, missed)


def catch_up_by_hand(
    engine: Engine,
    workos: WorkOSClient,
    actor: audit.Actor,
    since: datetime | None,
    lag: timedelta = LAG,
    progressed: Progressed = lambda _page: None,
) -> Report:
    """Catch up for an operator, and record it in the audit.

    With `since` (aware), reads all events since then, and the cursor does not move. `progressed` is called with each
    page of events that was read.

    Raises:
        ConfigurationError: `since` is more than 90 days ago, or in the future.
        WorkOSError: as for `catch_up`.
    """
    now = workos.now()
    if since is not None:
        _require_readable(since, now)
    in_transaction(engine, audit.note, actor, Action.CATCH_UP, since=since and since.isoformat())
    if since is None:
        return catch_up(engine, workos, lag=lag, progressed=progressed)
    events = EventLog(workos, now, progressed=progressed)
    returned, new = _store_since(engine, events, since)
    events.require_all_types()
    return Report(returned, new, now - lag)


def _require_readable(since: datetime, now: datetime) -> None:
    if since < now - OLDEST:
        raise ConfigurationError(f"--since {since:%Y-%m-%d}: {REMEDY}")
    if since > now:
        raise ConfigurationError(
            f"--since {since:%Y-%m-%d %H:%M:%S} is in the future: at WorkOS it is {now:%Y-%m-%d %H:%M:%S}"
        )


def _position(engine: Engine, default: datetime) -> Position:
    columns = (MirrorState.cursor, MirrorState.cursor_at, MirrorState.inbox_to, MirrorState.backfill_from)
    with read_transaction(engine) as tx:
        cursor, cursor_at, inbox_to, backfill_from = tx.execute(select(*columns)).one()
    # Without new events the cursor does not move and becomes too old for WorkOS. `inbox_to` still advances.
    return Position(cursor, max((at for at in (cursor_at, inbox_to) if at), default=default), inbox_to, backfill_from)


def _store_since(engine: Engine, events: EventLog, start: datetime) -> tuple[int, int]:
    """Store the events since a time; return how many were read, and how many of them are new."""
    returned = new = 0
    for page in events.since(start):
        returned += len(page.items)
        if unknown := unknown_events(engine, events_of(page).valid):
            new += in_transaction(engine, store_events, unknown)
    return returned, new


def _reread_from(position: Position, inbox_to: datetime) -> datetime | None:
    """Return the end of the two hours that are reread every ten minutes; None if a reread is not yet due.

    Until the first catch-up has succeeded, failed ones may have moved the cursor past events that appeared late.
    """
    if position.inbox_to is None:
        return (position.backfill_from or position.read_to) if position.cursor is not None else None
    start = _round_down(position.inbox_to)
    return start if start != _round_down(inbox_to) else None


def _round_down(time: datetime) -> datetime:
    """Return a time rounded down to a full ten minutes of the clock."""
    return time - (time - datetime.fromtimestamp(0, time.tzinfo)) % REREAD_EVERY


class EventsOfPage(NamedTuple):
    """The events of a page, and the items that have no valid id or type."""

    valid: list[ReceivedEvent]
    invalid: list[object]


def events_of(page: Page) -> EventsOfPage:
    """Return the events of a page. Invalid ones are logged."""
    valid: list[ReceivedEvent] = []
    invalid: list[object] = []
    for item in page.items:
        at = parse_time(item.get("created_at")) if isinstance(item, dict) else None
        try:
            valid.append(ReceivedEvent.of(item, json.dumps(item).encode(), at))
        except PayloadError as error:
            log.warning("event_invalid", error=str(error), **_described(item, at))
            invalid.append(item)
    return EventsOfPage(valid, invalid)


def _described(item: object, at: datetime | None) -> dict[str, str | None]:
    """Return the id, type and time of an invalid event for the log, each only if it is valid."""
    if not isinstance(item, dict):
        return {"found": type(item).__name__}
    id, event_type = (
        value if isinstance(value := item.get(name), str) and is_id(value) else None for name in ("id", "event")
    )
    return {"id": id, "type": event_type, "created_at": at.isoformat() if at else None}


def store_events(tx: Connection, events: Sequence[ReceivedEvent]) -> int:
    """Store events; return how many are new. Those that the API showed later than the hold-back are counted."""
    new: list[ReceivedEvent] = []
    known: list[ReceivedEvent] = []
    for event in sorted(events, key=lambda event: event.id):  # so that two catch-ups do not deadlock
        is_new = accept_from_api(tx, event)
        if is_new is not None:  # the API has not returned it before
            (new if is_new else known).append(event)
    restore_payloads(tx, known)
    times = [event.occurred_at for event in new + known if event.occurred_at]
    read_to = tx.execute(select(Tail.read_to)).scalar_one() if times else None
    if late := sum(at <= read_to for at in times) if read_to else 0:
        tx.execute(update(Tail).values(late_events=Tail.late_events + late))
    return len(new)


def unknown_events(engine: Engine, events: Sequence[ReceivedEvent]) -> list[ReceivedEvent]:
    """Return the events that the API has not returned before. Unlike storing all again, this takes no locks."""
    ids = [event.id for event in events]
    with read_transaction(engine) as tx:
        known = set(tx.execute(select(Event.id).where(Event.id.in_(ids), Event.api_at.is_not(None))).scalars())
    return [event for event in events if event.id not in known]


def _store_and_advance(tx: Connection, page: Page, inbox_to: datetime) -> int:
    """Store a page, and move the cursor to its newest event from before `inbox_to`; return how many events are new."""
    # Lock this row first: a drain also locks it before events, so that the two do not deadlock.
    tx.execute(select(MirrorState.id).with_for_update())
    events = events_of(page).valid
    new = store_events(tx, events)
    times = [(event.occurred_at, event.id) for event in events if event.occurred_at and event.occurred_at < inbox_to]
    if times:
        at, id = max(times)
        forward = or_(MirrorState.cursor_at.is_(None), MirrorState.cursor_at <= at)
        tx.execute(update(MirrorState).where(forward).values(cursor=id, cursor_at=at))
    return new


def _set_inbox_to(tx: Connection, inbox_to: datetime) -> None:
    """Record that all events up to a time are in the inbox, unless an earlier time waits for `update_complete_to`."""
    forward = or_(MirrorState.inbox_to.is_(None), MirrorState.inbox_to < inbox_to)
    # A recorded time stays until its events are applied: if each catch-up replaced it, some event might always be
    # pending. But one recorded before the latest full resync is replaced, because it could not end the backfill.
    replaceable = or_(MirrorState.inbox_at.is_(None), MirrorState.inbox_at < MirrorState.last_resync_at)
    tx.execute(update(MirrorState).where(forward, replaceable).values(inbox_to=inbox_to, inbox_at=db_now()))


def update_complete_to(engine: Engine) -> None:
    """Copy `inbox_to` to `complete_to` once no event up to `inbox_to` is pending.

    Those are the events received until `inbox_to` was recorded (`inbox_at`), and those up to `inbox_to` that the API
    returned later. If `inbox_to` was recorded after the latest full resync, this ends the backfill.
    """
    received = Event.received_at <= MirrorState.inbox_at
    returned_later = and_(Event.api_at >= MirrorState.inbox_at, Event.occurred_at <= MirrorState.inbox_to)
    waiting = exists().where(Event.status == inline_literal(EventStatus.PENDING), or_(received, returned_later))
    applied = (MirrorState.inbox_at.is_not(None), ~waiting)
    first = (MirrorState.backfilled_at.is_(None), MirrorState.last_resync_at <= MirrorState.inbox_at)
    with read_transaction(engine) as tx:
        if tx.execute(select(MirrorState.id).where(*applied)).one_or_none() is None:
            return

    def advance(tx: Connection) -> None:
        # Lock first: an update that waited for the lock would see the new row but the old events.
        tx.execute(select(MirrorState.id).with_for_update())
        tx.execute(update(MirrorState).where(*applied, *first).values(backfilled_at=db_now()))
        tx.execute(update(MirrorState).where(*applied).values(complete_to=MirrorState.inbox_to, inbox_at=None))

    in_transaction(engine, advance)


def count_missed_webhooks(tx: Connection, gap_seconds: float) -> tuple[int, int]:
    """Return the number of lost webhooks, and the number of late ones.

    A webhook is lost if it has not arrived `gap_seconds` after the events API returned its event. It is late if it
    arrived after that.
    """
    lost = (Event.webhook_at.is_(None), Event.api_at < db_now_plus(-gap_seconds))
    late = (Event.webhook_at > Event.api_at, Event.webhook_at > db_plus(Event.api_at, gap_seconds))
    count = select(func.count()).select_from(Event)
    numbers = select(count.where(*lost).scalar_subquery(), count.where(*late).scalar_subquery())
    lost_count, late_count = tx.execute(numbers).one()
    return lost_count, late_count
