"""Catch-up: read the events API into the same inbox, so that what no webhook brought is applied all the same.

The cursor moves only to events that the API itself returned and that are older than the lag, by WorkOS's clock: its
newest events are held back from ascending reads for a few seconds, so the lagging window is read again each time and
the inbox drops the duplicates.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, exists, func, or_, select, update

from models.database import reading, write
from models.tables import Event, EventStatus, Mirror
from models.types import constant, db_in, db_now, db_plus
from worker.decision.handlers import SUBSCRIBED
from worker.decision.snapshots import parse_time
from worker.directory.client import Directory, NotThereError, Page, QueryRefusedError
from worker.errors import ConfigurationError, PayloadError
from worker.inbox.store import Delivery, accept_from_api
from worker.repair.runs import Lease

log = structlog.get_logger()

LAG = timedelta(seconds=60)
CHUNK = timedelta(days=30)
"""The longest range WorkOS takes in one query."""
OLDEST = timedelta(days=90)
"""WorkOS keeps events no longer."""
MARGIN = timedelta(minutes=10)
"""A range that starts at the very edge would be over it when WorkOS reads it."""
REMEDY = "WorkOS keeps events for 90 days; run: workos-sync resync"

Take = Callable[[Connection, Page], int]
"""Stores a page in a transaction and returns how many of its events are new to the inbox."""
Usable = tuple[datetime | None, Delivery]
"""An event that has an id and a type, and when it happened, if it says so."""


class Report(NamedTuple):
    """What a catch-up did: events returned, those that were new to the inbox, up to when it is complete (UTC).

    `missed`: the API no longer had all that happened since the last one; only a resync finds that.
    """

    returned: int
    new: int
    complete_to: datetime
    missed: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where to read on: after an event; from a time if there is none, or WorkOS no longer knows it."""

    cursor: str | None
    at: datetime


class CursorLostError(Exception):
    """WorkOS does not know the cursor: it said so, or answered from the beginning."""


def catch_up(engine: Engine, directory: Directory, held: Lease | None = None, lag: timedelta = LAG) -> Report:
    """Read on from the cursor to the newest event that the API shows.

    Without a cursor reads from the time kept in its place, or from one lag ago on a database that never caught up.

    Raises:
        UnreadableError: WorkOS did not answer; what was read so far is kept.
        LeaseLostError: another worker took over.
    """
    now = directory.now()
    # One for all pages: a page that is read later shows later events, but not what an earlier page had not yet.
    settled = now - lag
    place = _place(engine, settled)

    def take(tx: Connection, page: Page) -> int:
        return _take(tx, page, held, settled)

    missed = False
    try:
        returned, new = _take_all(engine, _from(directory, place, now, lag), take)
    except CursorLostError:
        start = max(place.at, now - OLDEST + MARGIN)
        missed = start > place.at
        log.warning("cursor_lost", cursor=place.cursor, reads_from=start.isoformat())
        returned, new = _take_all(engine, _since(directory, start, now), take)
    write(engine, lambda tx: _complete(tx, settled, held))
    settle(engine)
    log.info("caught_up", returned=returned, new=new)
    if missed:
        log.error("events_missed", after=place.at.isoformat(), remedy=REMEDY)
    return Report(returned, new, settled, missed)


def catch_up_since(engine: Engine, directory: Directory, since: datetime, lag: timedelta = LAG) -> Report:
    """Read all events since a time (aware), in chunks of 30 days; leaves the cursor where it is.

    Raises:
        ConfigurationError: it is longer ago than the API keeps events, or still to come.
        UnreadableError: WorkOS did not answer; what was read so far is kept.
    """
    now = directory.now()
    if since < now - OLDEST:
        raise ConfigurationError(f"--since {since:%Y-%m-%d}: {REMEDY}")
    if since > now:
        raise ConfigurationError(f"--since {since:%Y-%m-%d %H:%M:%S}: it is {now:%Y-%m-%d %H:%M:%S} (UTC) at WorkOS")
    returned, new = _take_all(engine, _since(directory, since, now), lambda tx, page: _store(tx, page)[0])
    return Report(returned, new, now - lag)


def settle(engine: Engine) -> None:
    """Note how far the mirror is right: once all that a catch-up left in the inbox is applied, or set aside as failed.

    The first time after a full resync this ends the backfill.
    """
    waiting = exists().where(Event.status == constant(EventStatus.PENDING), Event.received_at <= Mirror.inbox_at)
    applied = (Mirror.inbox_at.is_not(None), ~waiting)
    first = (Mirror.backfilled_at.is_(None), Mirror.last_resync_at <= Mirror.inbox_at)
    with reading(engine) as tx:
        if tx.execute(select(Mirror.id).where(*applied)).one_or_none() is None:
            return

    def note(tx: Connection) -> None:
        tx.execute(update(Mirror).where(*applied, *first).values(backfilled_at=db_now()))
        tx.execute(update(Mirror).where(*applied).values(complete_to=Mirror.inbox_to, inbox_at=None))

    write(engine, note)


def gaps(engine: Engine, patience_seconds: float) -> tuple[int, int]:
    """Return how many events no webhook brought within the patience (gaps), and how many it brought after (late)."""
    gap = (Event.webhook_at.is_(None), Event.api_at < db_in(-patience_seconds))
    late = (Event.webhook_at > Event.api_at, Event.webhook_at > db_plus(Event.api_at, patience_seconds))
    with reading(engine) as tx:
        count = select(func.count()).select_from(Event)
        return tx.execute(count.where(*gap)).scalar_one(), tx.execute(count.where(*late)).scalar_one()


def _place(engine: Engine, otherwise: datetime) -> Place:
    with reading(engine) as tx:
        cursor, *times = tx.execute(select(Mirror.cursor, Mirror.cursor_at, Mirror.inbox_to)).one()
    # The cursor stands still while nothing happens, and grows too old for WorkOS; what was read since is known.
    return Place(cursor, max((at for at in times if at), default=otherwise))


def _from(directory: Directory, place: Place, now: datetime, lag: timedelta) -> Iterator[Page]:
    """Yield the pages from a place on; raises `CursorLostError` before the first."""
    if place.cursor is None and place.at < now - OLDEST + MARGIN:
        raise CursorLostError
    yield from _after(directory, place, lag) if place.cursor else _since(directory, place.at, now)


def _after(directory: Directory, place: Place, lag: timedelta) -> Iterator[Page]:
    try:
        page = directory.events(SUBSCRIBED, after=place.cursor)
    except (QueryRefusedError, NotThereError) as error:
        raise CursorLostError from error
    first = next((at for at, _ in _usable(page) if at), None)
    if first is not None and first < place.at - lag:
        raise CursorLostError  # from long before the cursor: it was answered from the beginning
    yield page
    while page.after is not None:
        page = directory.events(SUBSCRIBED, after=page.after)
        yield page


def _since(directory: Directory, start: datetime, now: datetime) -> Iterator[Page]:
    """Yield the pages since a time, in chunks as long as WorkOS takes in one query; the last one is open."""
    more = True
    while more:
        more = start + CHUNK < now
        end = start + CHUNK if more else None
        page = directory.events(SUBSCRIBED, start=start, end=end)
        yield page
        while page.after is not None:
            page = directory.events(SUBSCRIBED, after=page.after, end=end)
            yield page
        start += CHUNK


def _take_all(engine: Engine, pages: Iterator[Page], take: Take) -> tuple[int, int]:
    """Store each page in a transaction of its own; return how many events there were, and how many were new."""
    returned = new = 0
    for page in pages:
        new += write(engine, lambda tx: take(tx, page))  # noqa: B023 - called now
        returned += len(page.items)
    return returned, new


def _take(tx: Connection, page: Page, held: Lease | None, settled: datetime) -> int:
    """Store a page and move the cursor to its newest event from before `settled`."""
    if held is not None:
        held.check(tx)
    # First of all, as a drain does, which holds it before it locks events: so neither waits for the other.
    tx.execute(select(Mirror.id).with_for_update())
    new, usable = _store(tx, page)
    passed = [(at, delivery.id) for at, delivery in usable if at and at < settled]
    if passed:
        at, id = max(passed)
        forward = or_(Mirror.cursor_at.is_(None), Mirror.cursor_at <= at)
        tx.execute(update(Mirror).where(forward).values(cursor=id, cursor_at=at))
    return new


def _store(tx: Connection, page: Page) -> tuple[int, list[Usable]]:
    """Store the events of a page; return how many are new, and all that could be stored."""
    usable = _usable(page)
    if len(usable) < len(page.items):
        log.warning("events_unusable", number=len(page.items) - len(usable))
    # In one order, so that two catch-ups wait for each other in one order only.
    return sum(accept_from_api(tx, delivery) for delivery in sorted(delivery for _, delivery in usable)), usable


def _usable(page: Page) -> list[Usable]:
    usable: list[Usable] = []
    for item in page.items:
        with suppress(PayloadError):
            delivery = Delivery.of(item, json.dumps(item).encode())
            usable.append((parse_time(item.get("created_at")), delivery))
    return usable


def _complete(tx: Connection, complete_to: datetime, held: Lease | None) -> None:
    """Note that the inbox is complete up to a time; what is in it now is still to be applied (see `settle`)."""
    if held is not None:
        held.check(tx)
    forward = or_(Mirror.inbox_to.is_(None), Mirror.inbox_to < complete_to)
    # One that waits stays as it is, or events that keep coming would put it off for ever; but one from before the
    # first resync does not end the backfill.
    free = or_(Mirror.inbox_at.is_(None), Mirror.inbox_at < Mirror.last_resync_at)
    tx.execute(update(Mirror).where(forward, free).values(inbox_to=complete_to, inbox_at=db_now()))
