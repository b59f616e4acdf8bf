"""Catch-up: read the events API into the inbox, so that an event whose webhook was lost is applied too.

Four steps, in this order:

1. Read the pages after the cursor, or since a time (`event_log`).
2. Store every event of every page. Known ids are dropped by the inbox; nothing else is.
3. Move the cursor, with each page, to the newest event that is older than the lag. WorkOS holds its newest events back
   from ascending reads for a few seconds, so the lagging window is read again each time.
4. Note how far the inbox is complete. `settle` makes that `complete_to` once everything is applied.

WorkOS can show events hours late, at the end of its listing or at their own time, before the cursor. So every ten
minutes step 1 also reads the last two hours again. These pages never move the cursor.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, and_, exists, func, or_, select, update

from models.database import in_transaction, read_transaction
from models.tables import Event, EventStatus, Mirror
from models.types import db_now, db_now_plus, db_plus, inline_literal
from worker.decision.payload import is_id, parse_time
from worker.errors import ConfigurationError, CursorLostError, PayloadError
from worker.inbox.store import Delivery, accept_from_api
from worker.repair.event_log import MARGIN, OLDEST, EventLog
from worker.runs import Lease
from worker.workos_api.client import Page, WorkOSClient

log = structlog.get_logger()

LAG = timedelta(seconds=60)
LATEST = timedelta(hours=2)
"""How late the events API may show an event, at most, so that catch-up still finds it."""
REREAD_EVERY = timedelta(minutes=10)
REMEDY = "WorkOS keeps events for 90 days; run: workos-sync resync"

Stored = tuple[datetime | None, Delivery]
"""An event and when it happened (UTC); None if it has no usable time."""


class Report(NamedTuple):
    """What a catch-up did: events read, those that were new to the inbox, up to when it is complete (UTC).

    `returned` counts an event that was read again for late ones only if it was new.
    `missed`: the API no longer had all that happened since the last one; only a resync finds that.
    """

    returned: int
    new: int
    complete_to: datetime
    missed: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """How far catch-up has read.

    Attributes:
        cursor: the event to read on after, if there is one.
        read_to: everything that the events API showed up to here is in the inbox, but for what it showed late.
        inbox_to: up to here the inbox was found complete; None before the first catch-up has ended.
        began: nothing before this is needed: the first resync covers it.
    """

    cursor: str | None
    read_to: datetime
    inbox_to: datetime | None
    began: datetime | None

    def since(self, time: datetime, now: datetime) -> datetime:
        """Return where to start reading so that events before `time` that were shown late are found."""
        return max(at for at in (time - LATEST, now - OLDEST + MARGIN, self.began) if at is not None)


def catch_up(engine: Engine, workos: WorkOSClient, held: Lease | None = None, lag: timedelta = LAG) -> Report:
    """Read on from the cursor to the newest event that the API shows.

    Without a cursor, or if WorkOS refuses it, reads from two hours before the time that was read to.

    Raises:
        WorkOSUnavailableError: WorkOS did not answer, or rejects some event types. What it returned is kept, and the
            inbox is not noted as complete.
        LeaseLostError: another worker took over.
    """
    now = workos.now()
    # One for all pages: a page that is read later shows later events, but not what an earlier page had not yet.
    settled = now - lag
    place = _place(engine, settled)
    events = EventLog(workos, now)
    returned = new = 0
    for page in _unread(events, place, now):
        new += in_transaction(engine, _take, page, held, settled)
        returned += len(page.items)
    late = _reread(engine, events, place, now, settled)
    events.require_all_types()
    in_transaction(engine, _complete, settled, held)
    update_complete_to(engine)
    log.info("caught_up", returned=returned, new=new, late=late)
    complete = place.inbox_to or place.began or place.read_to  # the cursor may be past what one that failed has missed
    missed = complete < now - OLDEST
    if missed:
        log.error("events_missed", after=complete.isoformat(), remedy=REMEDY)
    return Report(returned + late, new + late, settled, missed)


def catch_up_since(engine: Engine, workos: WorkOSClient, since: datetime, lag: timedelta = LAG) -> Report:
    """Read all events since a time (aware), in chunks of 30 days; leaves the cursor where it is.

    Raises:
        ConfigurationError: it is longer ago than the API keeps events, or still to come.
        WorkOSUnavailableError: as `catch_up`.
    """
    now = workos.now()
    if since < now - OLDEST:
        raise ConfigurationError(f"--since {since:%Y-%m-%d}: {REMEDY}")
    if since > now:
        raise ConfigurationError(f"--since {since:%Y-%m-%d %H:%M:%S}: it is {now:%Y-%m-%d %H:%M:%S} (UTC) at WorkOS")
    events = EventLog(workos, now)
    returned = new = 0
    for page in events.since(since):
        new += in_transaction(engine, _store, _readable(page))
        returned += len(page.items)
    events.require_all_types()
    return Report(returned, new, now - lag)


# Reading


def _place(engine: Engine, otherwise: datetime) -> Place:
    columns = (Mirror.cursor, Mirror.cursor_at, Mirror.inbox_to, Mirror.backfill_from)
    with read_transaction(engine) as tx:
        cursor, cursor_at, inbox_to, began = tx.execute(select(*columns)).one()
    # The cursor does not move while nothing happens, and grows too old for WorkOS; what was read since is known.
    return Place(cursor, max((at for at in (cursor_at, inbox_to) if at), default=otherwise), inbox_to, began)


def _unread(events: EventLog, place: Place, now: datetime) -> Iterator[Page]:
    """Yield the pages after the cursor, to the last one: if WorkOS answers from the beginning, that is all it has."""
    if place.cursor is not None:
        try:
            yield from events.after(place.cursor)
        except CursorLostError:
            log.warning("cursor_lost", cursor=place.cursor, reads_from=place.since(place.read_to, now).isoformat())
        else:
            return
    yield from events.since(place.since(place.read_to, now))


def _reread(engine: Engine, events: EventLog, place: Place, now: datetime, settled: datetime) -> int:
    """Read the last two hours again, once in each ten minutes, and store what is new; return how many were.

    `inbox_to` tells when that was done: the first catch-up to complete within ten minutes of the clock does it.
    """
    if place.inbox_to is None or _ten_minutes(place.inbox_to) == _ten_minutes(settled):
        return 0
    late = 0
    for page in events.since(place.since(_ten_minutes(place.inbox_to), now)):
        if unknown := _unknown(engine, _readable(page)):
            late += in_transaction(engine, _store, unknown)
    if late:
        log.warning("late_events", number=late)
    return late


def _ten_minutes(time: datetime) -> datetime:
    """Return the start of the ten minutes of the clock that a time is in."""
    return time - (time - datetime.fromtimestamp(0, time.tzinfo)) % REREAD_EVERY


# Storing


def _readable(page: Page) -> list[Stored]:
    """Return the events of a page. One without an id or a type cannot be a row: it is reported."""
    readable: list[Stored] = []
    for item in page.items:
        try:
            delivery = Delivery.of(item, json.dumps(item).encode())
        except PayloadError as error:
            log.warning("event_unusable", error=str(error), **_described(item))
        else:
            readable.append((parse_time(item.get("created_at")), delivery))
    return readable


def _described(item: object) -> dict[str, str | None]:
    """Return what may be logged of an unusable event: its id, type and time, as far as each is one."""
    if not isinstance(item, dict):
        return {"found": type(item).__name__}
    id, kind = (
        value if isinstance(value := item.get(name), str) and is_id(value) else None for name in ("id", "event")
    )
    at = parse_time(item.get("created_at"))
    return {"id": id, "type": kind, "created_at": at.isoformat() if at else None}


def _store(tx: Connection, events: Sequence[Stored]) -> int:
    """Store events; return how many are new."""
    # In one order, so that two catch-ups wait for each other in one order only.
    in_order = sorted(events, key=lambda event: event[1])
    return sum(accept_from_api(tx, delivery, occurred_at) for occurred_at, delivery in in_order)


def _unknown(engine: Engine, events: list[Stored]) -> list[Stored]:
    """Return the events that the API has not returned before: a query, where storing them again would take locks."""
    ids = [delivery.id for _, delivery in events]
    with read_transaction(engine) as tx:
        known = set(tx.execute(select(Event.id).where(Event.id.in_(ids), Event.api_at.is_not(None))).scalars())
    return [event for event in events if event[1].id not in known]


# The cursor


def _take(tx: Connection, page: Page, held: Lease | None, settled: datetime) -> int:
    """Store a page and move the cursor; return how many events are new."""
    if held is not None:
        held.check(tx)
    # First of all, as a drain does, which holds it before it locks events: so neither waits for the other.
    tx.execute(select(Mirror.id).with_for_update())
    events = _readable(page)
    new = _store(tx, events)
    _move_cursor(tx, events, settled)
    return new


def _move_cursor(tx: Connection, events: list[Stored], settled: datetime) -> None:
    """Move the cursor forward, to the newest of some events from before `settled`."""
    passed = [(at, delivery.id) for at, delivery in events if at and at < settled]
    if passed:
        at, id = max(passed)
        forward = or_(Mirror.cursor_at.is_(None), Mirror.cursor_at <= at)
        tx.execute(update(Mirror).where(forward).values(cursor=id, cursor_at=at))


# Completeness


def _complete(tx: Connection, complete_to: datetime, held: Lease | None) -> None:
    """Note that the inbox is complete up to a time; what is in it now is still to be applied (see `settle`)."""
    if held is not None:
        held.check(tx)
    forward = or_(Mirror.inbox_to.is_(None), Mirror.inbox_to < complete_to)
    # One that waits stays as it is, or events that keep coming would put it off for ever; but one from before the
    # first resync does not end the backfill.
    free = or_(Mirror.inbox_at.is_(None), Mirror.inbox_at < Mirror.last_resync_at)
    tx.execute(update(Mirror).where(forward, free).values(inbox_to=complete_to, inbox_at=db_now()))


def update_complete_to(engine: Engine) -> None:
    """Move `complete_to` to where the inbox was found complete, once that is applied, or set aside as failed.

    That is everything received by then, and every event from before that time which the API showed since: a late one
    holds it up too. The first time after a full resync this ends the backfill.
    """
    received = Event.received_at <= Mirror.inbox_at
    shown_since = and_(Event.api_at >= Mirror.inbox_at, Event.occurred_at <= Mirror.inbox_to)
    waiting = exists().where(Event.status == inline_literal(EventStatus.PENDING), or_(received, shown_since))
    applied = (Mirror.inbox_at.is_not(None), ~waiting)
    first = (Mirror.backfilled_at.is_(None), Mirror.last_resync_at <= Mirror.inbox_at)
    with read_transaction(engine) as tx:
        if tx.execute(select(Mirror.id).where(*applied)).one_or_none() is None:
            return

    def note(tx: Connection) -> None:
        # The lock comes first: an update that had to wait for it would look at the new row and at events of before.
        tx.execute(select(Mirror.id).with_for_update())
        tx.execute(update(Mirror).where(*applied, *first).values(backfilled_at=db_now()))
        tx.execute(update(Mirror).where(*applied).values(complete_to=Mirror.inbox_to, inbox_at=None))

    in_transaction(engine, note)


def gaps(engine: Engine, patience_seconds: float) -> tuple[int, int]:
    """Return how many events no webhook brought within the patience (gaps), and how many it brought after (late)."""
    gap = (Event.webhook_at.is_(None), Event.api_at < db_now_plus(-patience_seconds))
    late = (Event.webhook_at > Event.api_at, Event.webhook_at > db_plus(Event.api_at, patience_seconds))
    with read_transaction(engine) as tx:
        count = select(func.count()).select_from(Event)
        return tx.execute(count.where(*gap)).scalar_one(), tx.execute(count.where(*late)).scalar_one()
