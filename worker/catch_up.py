"""Catch-up: read the events API into the same inbox, so that what no webhook brought is applied all the same.

The cursor moves only to events that the API itself returned and that are older than the lag, by WorkOS's clock: its
newest events are held back from ascending reads for a few seconds, so the lagging window is read again each time and
the inbox drops the duplicates.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, Engine, func, or_, select, update

from models.database import reading, write
from models.tables import Event, Mirror
from models.types import db_in
from worker.directory import Directory, NotThereError, Page, QueryRefusedError
from worker.errors import ConfigurationError
from worker.handlers import HANDLERS
from worker.inbox import store
from worker.runs import Lease
from worker.snapshots import is_id, parse_time

log = structlog.get_logger()

LAG = timedelta(seconds=60)
CHUNK = timedelta(days=30)
OLDEST = timedelta(days=90)
TYPES = sorted(type for type, handler in HANDLERS.items() if handler)


class Report(NamedTuple):
    """What a catch-up did: events returned, those that were new to the inbox, and up to when it is complete (UTC)."""

    returned: int
    new: int
    complete_to: datetime


@dataclass(frozen=True, slots=True)
class Place:
    """Where to read on: after an event, or from a time."""

    cursor: str | None
    at: datetime | None


def catch_up(engine: Engine, directory: Directory, held: Lease | None = None, lag: timedelta = LAG) -> Report:
    """Read on from the cursor to the newest event that the API shows.

    Without a cursor reads from the time kept in its place, or from one lag ago on a database that never caught up.

    Raises:
        UnreadableError: WorkOS did not answer; what was read so far is kept.
        LeaseLostError: another worker took over.
    """
    place = _place(engine, directory, lag)
    returned = new = 0
    after, start = place.cursor, None if place.cursor else place.at
    while True:
        try:
            page = directory.events(TYPES, after=after, start=start)
        except (QueryRefusedError, NotThereError):
            if after is None:
                raise
            log.warning("cursor_lost", cursor=after)
            after, start = None, place.at
            continue
        stored = write(engine, lambda tx: _store(tx, page, held, lag))  # noqa: B023 - called now
        returned, new = returned + len(page.items), new + stored
        if page.after is None:
            break
        after, start = page.after, None
    complete_to = page.read_at - lag
    write(engine, lambda tx: _complete(tx, complete_to, held))
    log.info("caught_up", returned=returned, new=new)
    return Report(returned, new, complete_to)


def catch_up_since(engine: Engine, directory: Directory, since: datetime, lag: timedelta = LAG) -> Report:
    """Read all events since a time (aware), in chunks of 30 days; leaves the cursor where it is.

    Raises:
        ConfigurationError: it is longer ago than the API keeps events.
        UnreadableError: WorkOS did not answer; what was read so far is kept.
    """
    now = directory.now()
    if since < now - OLDEST:
        raise ConfigurationError(f"--since {since:%Y-%m-%d}: WorkOS keeps events for 90 days; run: workos-sync resync")
    returned = new = 0
    start = since
    while start < now:
        end, after = min(start + CHUNK, now), None
        more = True
        while more:
            page = directory.events(TYPES, after=after, start=None if after else start, end=end)
            new += write(engine, lambda tx: _store_all(tx, page))  # noqa: B023 - called now
            returned += len(page.items)
            after = page.after
            more = after is not None
        start = end
    return Report(returned, new, now - lag)


def gaps(engine: Engine, patience_seconds: float) -> tuple[int, int]:
    """Return how many events no webhook brought within the patience (gaps), and how many it brought after (late)."""
    overdue = Event.api_at < db_in(-patience_seconds)
    with reading(engine) as tx:
        gap = select(func.count()).where(Event.api_at.is_not(None), Event.webhook_at.is_(None), overdue)
        after = select(Event.api_at, Event.webhook_at).where(Event.webhook_at > Event.api_at)
        waits = (webhook_at - api_at for api_at, webhook_at in tx.execute(after) if webhook_at and api_at)
        late = sum(1 for wait in waits if wait.total_seconds() > patience_seconds)
        return tx.execute(gap).scalar_one(), late


def _place(engine: Engine, directory: Directory, lag: timedelta) -> Place:
    with reading(engine) as tx:
        cursor, at = tx.execute(select(Mirror.cursor, Mirror.cursor_at)).one()
    return Place(cursor, at or directory.now() - lag)


def _store(tx: Connection, page: Page, held: Lease | None, lag: timedelta) -> int:
    if held is not None:
        held.check(tx)
    new = _store_all(tx, page)
    settled = [(at, id) for at, id in map(_when, page.items) if at and id and at < page.read_at - lag]
    if settled:
        at, id = max(settled)
        forward = or_(Mirror.cursor_at.is_(None), Mirror.cursor_at <= at)
        tx.execute(update(Mirror).where(forward).values(cursor=id, cursor_at=at))
    return new


def _store_all(tx: Connection, page: Page) -> int:
    usable = [item for item in page.items if _usable(item)]
    if len(usable) < len(page.items):
        log.warning("events_unusable", number=len(page.items) - len(usable))
    # In one order, so that two catch-ups wait for each other in one order only.
    return sum(store(tx, item) for item in sorted(usable, key=lambda item: str(item["id"])))


def _usable(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(k), str) and is_id(item[k]) for k in ("id", "event"))


def _when(item: Any) -> tuple[datetime | None, str | None]:
    return (parse_time(item.get("created_at")), item["id"]) if _usable(item) else (None, None)


def _complete(tx: Connection, complete_to: datetime, held: Lease | None) -> None:
    if held is not None:
        held.check(tx)
    forward = or_(Mirror.complete_to.is_(None), Mirror.complete_to < complete_to)
    tx.execute(update(Mirror).where(forward).values(complete_to=complete_to))
