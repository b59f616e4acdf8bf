"""The tail: reads the newest events of the events API every few seconds, and records up to when all are applied.

`complete_to` = T means: every event created up to T is applied or has failed, if the events API showed it within
`HOLD_BACK_SECONDS` of its creation. Failed events that may affect access are in `uncertain_access`. T is WorkOS's time
at the start of a read that reached the end, less the hold-back; while an event waits, it is just before that event.

Each read continues after the newest event that is older than the hold-back, and so rereads the events of the hold-back:
WorkOS does not say whether an event that it shows late comes at the end of its list or at its own time, before newer
ones. Once a minute, the tail also rereads the `CATCH_UP_LAG_SECONDS` before that, for events that are shown even later.

While WorkOS refuses some event types, all others are read, but nothing counts as complete. Once it accepts them, the
tail reads again from where it was when they were first refused.

One process tails, under a lease. Between two reads it reads objects from WorkOS by id: those that products ask for
(`worker.repair.refresh`), and those of failed events. All its calls take at most a tenth of the share of the rate
limits, and do not wait behind a resync.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import chain

import structlog
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, Select, false, func, literal, or_, select, update

from models.database import read_transaction
from models.tables import Event, EventStatus, MirrorState, Read, Tail
from models.types import UtcDateTime, db_now, inline_literal
from models.views import EXPIRED_EVENTS
from worker import traces
from worker.decision.decide import DATE_STEP
from worker.decision.payload import EPOCH
from worker.error_handling import describe
from worker.errors import ConfigurationError, WorkOSError
from worker.inbox.store import ReceivedEvent
from worker.leases import Lease, LeasedTable
from worker.mirror import uncertainty
from worker.mirror.read_requests import EVENT_FAILED
from worker.queue.doorbell import Doorbell, TailBell
from worker.repair import reads, refresh
from worker.repair.catch_up import EventsOfPage, events_of, store_events, unknown_events
from worker.repair.environment import bind
from worker.repair.event_log import READABLE, EventLog
from worker.settings import Settings
from worker.workos_api.bucket import TAIL
from worker.workos_api.client import Page, WorkOSClient

log = structlog.get_logger()

TAIL_ID = "events"
"""The id of the single row of `tail`."""
TAILS = LeasedTable(Tail.id, Tail.leased_until, Tail.fence)
REREAD_SECONDS = 60.0
"""Interval at which the `CATCH_UP_LAG_SECONDS` before the hold-back are reread, and refused event types tried again."""
POLL_SECONDS = 0.5
"""Interval of checks whether the process must stop, and whether the events of a read are applied."""
STEP = timedelta(milliseconds=1)
"""The resolution of WorkOS's `created_at`."""


class EventTail:
    """Tails the events API while it holds `lease`. `bell` wakes the drain for new events; `own_bell` wakes the tail."""

    def __init__(
        self,
        engine: Engine,
        workos: WorkOSClient,
        lease: Lease,
        settings: Settings,
        bell: Doorbell,
        own_bell: TailBell,
    ) -> None:
        self._engine = engine
        self._workos = workos
        self._lease = lease
        self._settings = settings
        self._bell = bell
        self._own_bell = own_bell
        self._hold_back = timedelta(seconds=settings.hold_back_seconds)
        self._lag = timedelta(seconds=settings.catch_up_lag_seconds)
        self._reread_at = -REREAD_SECONDS
        self._refused: dict[str, str] = {}
        """WorkOS's message for each event type that it refuses."""
        self._cursor_while_refused: str | None = None
        """The id of the event to continue after while some types are refused. The recorded cursor waits for them."""
        self._calls_before = workos.calls
        self._interval = settings.tail_seconds
        self._due = 0.0
        """When the next read of events is due, as `time.monotonic`."""
        self._spent = 0.0
        """Seconds spent on reads of objects since the last read of events."""
        self._is_bound = False
        self._applied = False
        """Whether all events that were read are applied."""
        self._publish_at = 0.0
        """When to check again whether they are, as `time.monotonic`."""
        self._problem: str | None = None
        self._stop = threading.Event()
        in_force = {"hold_back_seconds": settings.hold_back_seconds, "tail_seconds": settings.tail_seconds}
        lease.in_transaction(engine, _update_row, **in_force)

    def follow(self, stop: threading.Event) -> None:
        """Read events every `TAIL_SECONDS`, or less often if the rate limit requires it; read objects in between.

        Returns when `stop` is set, or when it notices between two reads that the lease is lost. A failed read is
        recorded, and the next one is made as usual.

        Raises:
            LeaseLostError: another process tails now, as a write noticed.
            sqlalchemy.exc.DBAPIError: the database is unavailable.
        """
        self._stop = stop
        self._due = time.monotonic()
        while not self._ended():
            try:
                if time.monotonic() >= self._due:
                    self._read_events()
                if self._is_bound:
                    self._read_objects()
            except (WorkOSError, ConfigurationError, RedisError) as error:
                self._note_problem(describe(error))
            self._wait()

    def _ended(self) -> bool:
        return self._stop.is_set() or self._lease.lost.is_set()

    def _read_events(self) -> None:
        began = time.monotonic()
        self._due = began + self._interval  # if the read fails
        self._spent = 0.0
        if not self._is_bound:
            bind(self._engine, self._workos, self._settings)
            self._is_bound = True
        with traces.span("tail.read"):
            self._applied = self.read()
        self._due = began + self._interval  # which `read` may have changed
        self._problem = None

    def _read_objects(self) -> None:
        """Read the objects of refreshes, and then those of failed events, from WorkOS. No resync delays these reads.

        Stops when the next read of events is due, or when half the interval has been spent, so that enough of the rate
        limit is left for reads of events.
        """
        began = time.monotonic()

        def stopping() -> bool:
            spent = self._spent + time.monotonic() - began
            return self._ended() or time.monotonic() >= self._due or spent >= self._interval / 2

        try:
            refresh.work_due(self._engine, self._workos, stopping, self._ended)
            reads.work_due(self._engine, self._workos, stopping, Read.reason == EVENT_FAILED)
        finally:
            self._spent += time.monotonic() - began

    def _note_problem(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            log.warning("tail_failed", error=problem)
            self._lease.in_transaction(self._engine, _update_row, error=problem)

    def _wait(self) -> None:
        """Wait for a ring or the next read of events. Meanwhile, publish up to when all events are applied."""
        rung = False
        while not rung and (left := self._due - time.monotonic()) > 0 and not self._stop.is_set():
            rung = self._own_bell.wait(min(left, POLL_SECONDS), self._stop)
            if not self._applied and (began := time.monotonic()) >= self._publish_at:
                self._applied = self._lease.in_transaction(self._engine, publish)
                # If it takes long because many are pending, leave the database to the drain.
                self._publish_at = began + 10 * (time.monotonic() - began)
                if not self._applied:
                    self._bell.ring()  # an earlier ring may be lost

    def read(self) -> bool:
        """Read up to the newest event, store new events, and publish up to when the mirror is complete.

        The database must be bound (`worker.repair.environment.bind`). Returns whether all events that were read are
        applied.

        Raises:
            WorkOSError: WorkOS did not answer, or refuses some event types. Events that it returned are stored.
            InvalidApiKeyError: WorkOS refuses the API key.
            redis.exceptions.RedisError: the Redis of the rate limits is unavailable.
            LeaseLostError: another process tails now.
        """
        self._adapt_interval()
        with read_transaction(self._engine) as tx:
            tail = tx.execute(select(Tail.__table__)).one()
            mirror = tx.execute(select(MirrorState.__table__)).one()
            asked_at: datetime = tx.execute(select(db_now())).scalar_one()
        is_first = tail.read_to is None
        now = self._workos.now() if is_first else tail.read_to + (asked_at - tail.read_at)
        wanted = (mirror.inbox_to or mirror.backfill_from) if is_first else tail.read_to - self._lag
        start = self._kept_from(wanted, now)
        events = EventLog(self._workos, now, self._refused)
        began = time.monotonic()
        if self._refused and self._is_reread_due(began):
            self._reread_at = began
            if events.accepts_all_types():
                self._cursor_while_refused = None
        pages = events.after_or_since(self._cursor_while_refused or tail.cursor, start)
        first = next(pages)
        # `first.read_at` is WorkOS's time when it answered; subtract the call's duration.
        read_to = first.read_at - timedelta(seconds=time.monotonic() - began) - self._hold_back
        # The `Date` header has whole seconds. Assume the end of that second, so that the age is never too small.
        read_at = asked_at - (first.read_at + DATE_STEP - read_to)
        if not self._store_pages(events, chain((first,), pages), read_to):
            return False
        events.require_all_types()
        applied = self._lease.in_transaction(self._engine, self._finish, read_to, read_at)
        if not is_first and self._is_reread_due(began):
            for page in events.since(now - self._hold_back - self._lag):
                self._store(events_of(page), None)
            self._reread_at = began
        return applied

    def _kept_from(self, start: datetime, now: datetime) -> datetime:
        """Return `start`, or the oldest time that WorkOS keeps; if events have expired, all access is uncertain."""
        oldest = now - READABLE
        if start < oldest:
            log.error("events_missed", after=start.isoformat())
            self._lease.in_transaction(self._engine, uncertainty.mark_all_uncertain, EXPIRED_EVENTS)
        return max(start, oldest)

    def _is_reread_due(self, at: float) -> bool:
        return self._reread_at + REREAD_SECONDS <= at

    def _store_pages(self, events: EventLog, pages: Iterable[Page], read_to: datetime) -> bool:
        """Store the events of all pages; return False if the process is stopping.

        The cursor moves to the newest event that is not newer than `read_to`, by WorkOS's clock.
        """
        older = True
        for page in pages:
            received = events_of(page)
            cursor, older = _cursor(received.valid, read_to) if older else (None, False)
            # If WorkOS refuses a type, keep the recorded cursor, so that events of that type are read later.
            self._store(received, cursor if events.all_types else None)
            if not events.all_types:
                self._cursor_while_refused = cursor or self._cursor_while_refused
            if self._stop.is_set():
                return False
        return True

    def _store(self, received: EventsOfPage, cursor: str | None) -> None:
        """Store the events that the API has not returned before, and move the cursor."""
        new = unknown_events(self._engine, received.valid)
        if new or received.invalid or cursor is not None:
            self._lease.in_transaction(self._engine, _store_and_move, EventsOfPage(new, received.invalid), cursor)
        if new:
            self._bell.ring()

    def _adapt_interval(self) -> None:
        """Lengthen the interval if the calls since the last read began need more time, or reset it."""
        calls = self._workos.calls - self._calls_before
        self._calls_before = self._workos.calls
        needed = calls * TAIL.seconds / (TAIL.calls * self._settings.workos_rate_share)
        self._interval = max(self._settings.tail_seconds, needed)

    def _finish(self, tx: Connection, read_to: datetime, read_at: datetime) -> bool:
        _update_row(tx, read_to=read_to, read_at=read_at, interval_seconds=self._interval, error=None)
        return publish(tx)


def _cursor(received: Sequence[ReceivedEvent], read_to: datetime) -> tuple[str | None, bool]:
    """Return the id of the last event before the first one newer than `read_to`, and whether there is no newer one."""
    cursor = None
    for event in received:
        if event.occurred_at is not None and event.occurred_at > read_to:
            return cursor, False
        cursor = event.id
    return cursor, True


def _store_and_move(tx: Connection, events: EventsOfPage, cursor: str | None) -> None:
    store_events(tx, events.valid)
    for item in events.invalid:
        uncertainty.note_unstored(tx, item)
    if cursor is not None:
        _update_row(tx, cursor=cursor)


def _update_row(tx: Connection, /, **values: object) -> None:
    tx.execute(update(Tail).values(**values))


def publish(tx: Connection) -> bool:
    """Record up to when every event is applied; return whether all events that were read are applied.

    The recorded time is `read_to`, or just before the oldest waiting event if there is one. It never moves back, even
    if a waiting event was shown late.
    """
    tail = tx.execute(select(Tail.__table__)).one()
    if tail.read_to is None:
        return True
    oldest = tx.execute(_oldest_waiting(tail.read_to)).scalar_one()
    complete_to = tail.read_to if oldest is None else min(tail.read_to, max(oldest, EPOCH) - STEP)
    if oldest is None or tail.complete_to is None or tail.complete_to < complete_to:
        _update_row(tx, complete_to=complete_to, complete_at=tail.read_at - (tail.read_to - complete_to))
    return oldest is None


def _oldest_waiting(read_to: datetime) -> Select[datetime | None]:
    """Return the query of the time of the oldest event up to `read_to` that must still be applied.

    Replayed and failed events are left out: they were applied before, or are recorded as failed. An event without a
    usable time counts as the oldest.
    """
    pending = (Event.status == inline_literal(EventStatus.PENDING), Event.error.is_(None), Event.replays == 0)
    # Not `IS NOT NULL`, for which SQLite reads the index of `api_at`, with all events, instead of the pending ones.
    shown = (Event.api_at.is_(None) == false(), or_(Event.occurred_at.is_(None), Event.occurred_at <= read_to))
    at = func.coalesce(Event.occurred_at, literal(EPOCH, UtcDateTime()), type_=UtcDateTime())
    return select(func.min(at, type_=UtcDateTime())).where(*pending, *shown)
