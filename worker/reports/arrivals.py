"""How many events arrived in each part of an hour, a day or a week, how many of them failed, and what was refused."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Engine, ScalarSelect, func, select

from models.database import read_transaction
from models.tables import Event, EventStatus
from models.types import db_now, inline_literal, minute_of
from worker.inbox.store import TEST_TYPE
from worker.metrics import refused_by_minute

SETTLED = timedelta(minutes=1)
"""Events of a transaction that began earlier are not expected any more."""
MAX_CACHED = 2_000
MAX_LISTED = 10_000
"""Failed events that are counted, and test events that are not, the newest first."""


class Range(StrEnum):
    """How far back a chart goes."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"


BARS = {
    Range.HOUR: (60, timedelta(minutes=1)),
    Range.DAY: (96, timedelta(minutes=15)),
    Range.WEEK: (168, timedelta(hours=1)),
}
"""The number of bars of each range, and the time of one."""


class Bar(NamedTuple):
    """A part of the time: its start in UTC, the events received, those of them that are failed now, and refusals."""

    at: datetime
    received: int
    failed: int
    refused: int


class Chart(NamedTuple):
    """The bars of a range, oldest first. The last one is not over yet."""

    bars: list[Bar]
    minutes: int
    """Minutes of a bar."""
    knows_refused: bool
    """False if Redis, which counts the refused deliveries, is unavailable."""


class Arrivals:
    """Counts arrivals, and remembers the bars that are over, so that a page that refreshes itself counts only new ones.

    The database counts each bar by the index on the time: of a million events, a week is counted in a quarter of a
    second.
    """

    def __init__(self, engine: Engine, redis: Redis) -> None:
        self._engine = engine
        self._redis = redis
        self._received: dict[tuple[datetime, timedelta], int] = {}

    def chart(self, over: Range) -> Chart:
        """Return the arrivals up to now."""
        number, width = BARS[over]
        with read_transaction(self._engine) as tx:
            now: datetime = tx.execute(select(db_now())).scalar_one()
            last = _start_of(now, width)
            starts = [last - place * width for place in reversed(range(number))]
            received = self._count(tx, starts, width, now)
            failed = _by_bar(tx, Event.status == inline_literal(EventStatus.FAILED), starts[0], width)
            tests = _by_bar(tx, Event.type == TEST_TYPE, starts[0], width)
        refused = self._refused(starts[0], now, width)
        bars = [Bar(at, received[at] - tests[at], failed[at], refused[at] if refused else 0) for at in starts]
        return Chart(bars, int(width / timedelta(minutes=1)), knows_refused=refused is not None)

    def _count(self, tx: Connection, starts: list[datetime], width: timedelta, now: datetime) -> dict[datetime, int]:
        received = self._received  # another thread may replace it
        known = {at: received[at, width] for at in starts if (at, width) in received}
        unknown = [at for at in starts if at not in known]
        counted = dict(zip(unknown, tx.execute(select(*(_in_bar(at, width) for at in unknown))).one(), strict=True))
        if len(self._received) > MAX_CACHED:
            self._received = {}
        self._received |= {(at, width): found for at, found in counted.items() if at + width + SETTLED < now}
        return known | counted

    def _refused(self, first: datetime, last: datetime, width: timedelta) -> Counter[datetime] | None:
        try:
            found = refused_by_minute(self._redis, int(first.timestamp()) // 60, int(last.timestamp()) // 60)
        except RedisError:
            return None
        bars: Counter[datetime] = Counter()
        for minute, number in found.items():
            bars[_start_of(datetime.fromtimestamp(minute * 60, UTC), width)] += number
        return bars


def _start_of(at: datetime, width: timedelta) -> datetime:
    """Return when the bar that contains a time begins."""
    seconds = width.total_seconds()
    return datetime.fromtimestamp(at.timestamp() // seconds * seconds, UTC)


def _in_bar(at: datetime, width: timedelta) -> ScalarSelect[int]:
    inside = (Event.received_at >= at, Event.received_at < at + width)
    return select(func.count()).select_from(Event).where(*inside).scalar_subquery()


def _by_bar(tx: Connection, which: ColumnElement[bool], first: datetime, width: timedelta) -> Counter[datetime]:
    """Return the number of events that meet `which`, by the start of their bar."""
    at = Event.received_at
    some = select(at).where(which, at >= first).order_by(at.desc()).limit(MAX_LISTED)
    minute = minute_of(some.subquery().c.received_at)
    bars: Counter[datetime] = Counter()
    for start, number in tx.execute(select(minute, func.count()).group_by(minute)):
        bars[_start_of(start, width)] += number
    return bars
