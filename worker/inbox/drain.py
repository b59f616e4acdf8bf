"""Drain: apply pending events in batches, each in one transaction.

A batch can be recorded: committed to `batches` before it is attempted, and the transaction that applies it deletes the
record. If the transaction fails, or the process dies, the halves of the batch run separately. So an event that cannot
be applied, or that kills the process, ends up alone in its batch, and uses one attempt there. One whose payload is
unusable fails at once, in a batch of any size.

Recording costs as much as a small batch, so small batches are not recorded once a process has emptied the inbox. Until
then it records every batch, because an event that killed its predecessor may be due.
"""

import functools
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from rq.timeouts import JobTimeoutException
from sqlalchemy import ColumnElement, Connection, Engine, Select, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from models.bulk import is_any_of, update_rows
from models.database import (
    CLAIM_LOCK,
    SQLITE_BATCH,
    advisory_lock,
    in_transaction,
    is_transient,
    plan_without_sort,
    what_is_wrong,
)
from models.outcomes import Outcome
from models.tables import Batch, Cause, Event, EventStatus
from models.types import Record, db_now, db_now_plus, inline_literal
from worker import error_reports, traces
from worker.backoff import backoff
from worker.decision.payload import Envelope, clean
from worker.errors import PayloadError, WorkerCrashedError, fingerprint, stack_of
from worker.inbox import attempts
from worker.kinds import RoleMap, Snapshot, read_event
from worker.kinds.invitation import INVITATION, Invitation
from worker.mirror import uncertainty
from worker.mirror.apply import Arrival, Decision, apply, erased_users, note_changes, person_of
from worker.mirror.change_rows import ChangeRow
from worker.mirror.read_requests import request_reads_for
from worker.mirror.role_map import lock_role_map

log = structlog.get_logger()

ORPHAN_AFTER_SECONDS = 15.0
"""A batch started more than this many seconds ago, whose row is not locked, belongs to a dead drain."""
SMALL_BATCH = 100
"""Largest batch that is applied without a record in `batches`, once the inbox has been empty."""
PARTITIONS = 4
"""On PostgreSQL, up to this many drains work on a backlog without waiting for each other's rows."""
MAX_BACKOFF_SECONDS = 3600.0

NOT_PENDING = [status for status in EventStatus if status is not EventStatus.PENDING]
"""For the condition `not_in(NOT_PENDING)` on events that are found by id.

With `status = 'pending'`, PostgreSQL would expect few events, and read all pending ones by the index on the status.
"""
NO_ERROR = {"error": None, "fingerprint": None, "traceback": None}
"""The error columns of an event that has not failed."""
DONE: Record = {**NO_ERROR, "status": EventStatus.DONE, "processed_at": db_now()}
"""The columns that every applied or ignored event gets, beside those of `_done_columns`."""


@dataclass(frozen=True, slots=True)
class DrainLimits:
    """The limits of a drain. Times are in seconds. The defaults are for tests."""

    batch_size: int = 1000
    max_attempts: int = 10
    first_backoff: float = 1.0
    max_seconds: float = 20.0
    """A drain starts no new batch after this time."""


class ClaimedBatch(NamedTuple):
    """A recorded batch.

    Attributes:
        last: no other event was due when it was claimed.
        more_due: more events were due than a batch holds.
    """

    id: str
    event_ids: list[str]
    last: bool = False
    more_due: bool = False


class AttemptedBatch(NamedTuple):
    """A batch that was attempted.

    Attributes:
        accepted_at: when each applied event was accepted, replayed ones excluded, on the `time.monotonic` clock; used
            to compute ages after the commit.
        last, more_due: as in `ClaimedBatch`.
    """

    accepted_at: Sequence[float] = ()
    last: bool = False
    more_due: bool = False


class Drain:
    """Applies pending events, as often as it is called.

    Args:
        engine: the database.
        limits: sizes, times and attempts.
        on_applied: called after each commit with the ages in seconds of its events, except replayed ones.
        should_stop: returns whether to stop; called between two batches.
        on_backlog: called when more events are due than a batch holds.
    """

    def __init__(
        self,
        engine: Engine,
        limits: DrainLimits,
        on_applied: Callable[[list[float]], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
        on_backlog: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._on_applied = on_applied
        self._should_stop = should_stop
        self._on_backlog = on_backlog
        self._emptied = False
        """Whether this object has seen that no event was due."""

    def __call__(self) -> bool:
        """Apply pending events until none is due, except those that other drains have locked.

        Returns False if it was stopped or ran out of time before.

        Raises:
            sqlalchemy.exc.DBAPIError: the database is unavailable. The clock will ring again.
            rq.timeouts.JobTimeoutException: RQ ended the job. The batch was requeued.
        """
        ends = time.monotonic() + self._limits.max_seconds
        small = self._emptied
        while not self._should_stop() and time.monotonic() < ends:
            batch = (_small_batch(self._engine, self._limits) if small else None) or self._recorded_batch()
            if batch is not None:
                self._on_applied([time.monotonic() - at for at in batch.accepted_at])
            if batch is None or batch.last:  # events that arrive later ring the bell themselves
                self._emptied = True
                return True
            small = self._emptied and not batch.more_due
        return False

    def _recorded_batch(self) -> AttemptedBatch | None:
        """Record a batch and apply it in another transaction; return None if nothing is due."""
        batch = in_transaction(self._engine, _claim_batch, self._limits)
        if batch is None:
            return None
        if batch.more_due:
            self._on_backlog()
        try:
            with traces.batch():
                applied = in_transaction(self._engine, _apply_batch, self._limits, batch)
            return AttemptedBatch(applied, batch.last, batch.more_due)
        except Exception as error:
            # An event may raise anything: the error is recorded on its row.
            in_transaction(self._engine, _requeue_batch, self._limits, batch, error)
            if isinstance(error, JobTimeoutException):
                raise
            return AttemptedBatch()


def _small_batch(engine: Engine, limits: DrainLimits) -> AttemptedBatch | None:
    """Apply everything that is due in one transaction; return None if it needs a recorded batch (`_apply_due`)."""
    chosen: list[str] = []
    try:
        with traces.batch():
            accepted_at = in_transaction(engine, _apply_due, limits, chosen)
        return None if accepted_at is None else AttemptedBatch(accepted_at, last=True)
    except Exception as error:
        if not chosen:
            raise
        in_transaction(engine, _requeue, limits, chosen, error)
        if isinstance(error, JobTimeoutException):
            raise
        return AttemptedBatch()


def _apply_due(tx: Connection, limits: DrainLimits, chosen: list[str]) -> list[float] | None:
    """Apply all events that are due, and put their ids into `chosen`.

    Returns when they were accepted, as `AttemptedBatch.accepted_at`. Returns None, and applies nothing, if more
    events are due than `SMALL_BATCH` or than fit in a batch, if one of them has used an attempt, or if a batch is
    recorded.
    """
    now = time.monotonic()
    limit = min(SMALL_BATCH, limits.batch_size)
    chosen.clear()
    roles = lock_role_map(tx)
    found = [InboxEvent(*event) for event in tx.execute(_due_events(limit + 1))]
    if len(found) > limit or any(event.attempts for event in found):
        return None
    if not found:
        return None if tx.execute(select(select(Batch.id).exists())).scalar_one() else []
    chosen += [event.id for event in found]
    applied = apply_events(tx, found, roles)
    _record_outcomes(tx, limits, applied)
    return [now - age for age in applied.ages]


@functools.cache
def _due_events(limit: int) -> Select[*tuple[Any, ...]]:
    """Return the statement that locks up to `limit` due events.

    It finds none while a batch is recorded: that batch may contain them.
    """
    due = (Event.status == inline_literal(EventStatus.PENDING), Event.due_at <= db_now(), ~select(Batch.id).exists())
    return _inbox_events(*due).order_by(Event.due_at, Event.id).limit(limit).with_for_update(skip_locked=True)


def _claim_batch(tx: Connection, limits: DrainLimits) -> ClaimedBatch | None:
    """Choose and record the next batch: a recorded one that waits first, otherwise pending events that are due."""
    advisory_lock(tx, CLAIM_LOCK)
    _requeue_orphans(tx, limits)
    open_batches = tx.execute(select(Batch.id, Batch.event_ids, Batch.started_at)).all()
    waiting = next((batch for batch in open_batches if batch.started_at is None), None)
    if waiting is not None:
        tx.execute(update(Batch).where(Batch.id == waiting.id).values(started_at=db_now()))
        return ClaimedBatch(waiting.id, waiting.event_ids)
    taken = {event_id for batch in open_batches for event_id in batch.event_ids}
    size, partitions = limits.batch_size, PARTITIONS
    if tx.dialect.name == "sqlite":
        size, partitions = min(size, SQLITE_BATCH), 1  # one writer: drains cannot divide the work
    plan_without_sort(tx)
    due = (
        select(Event.id, Event.partition_key)
        .where(Event.status == inline_literal(EventStatus.PENDING), Event.due_at <= db_now())
        .order_by(Event.due_at, Event.id)
        # Enough that some partition fills a batch, and to see whether more are due.
        .limit(size * partitions + len(taken) + 1)
    )
    due_events = [(id, key % partitions) for id, key in tx.execute(due).all()]
    free = [(id, partition) for id, partition in due_events if id not in taken]
    chosen = _choose_events(free, {partition for id, partition in due_events if id in taken}, size)
    if not chosen:
        return None
    nothing_left = len(chosen) == len(free) < size
    more_due = len(free) > size
    return ClaimedBatch(_insert_batch(tx, chosen, started=True), chosen, last=nothing_left, more_due=more_due)


def _choose_events(free: Sequence[tuple[str, int]], busy: Collection[int], size: int) -> list[str]:
    """Return the ids of at most `size` events for one batch.

    If the `free` events do not all fit, those of one partition are chosen. It is not one of the `busy` partitions of
    other drains if possible, so that no drain waits for another's rows.
    """
    if len(free) <= size:
        return [id for id, _ in free]
    chosen = next((partition for _, partition in free if partition not in busy), free[0][1])
    return [id for id, partition in free if partition == chosen][:size]


def _insert_batch(tx: Connection, event_ids: Sequence[str], *, started: bool) -> str:
    id = uuid.uuid4().hex
    tx.execute(insert(Batch).values(id=id, event_ids=list(event_ids), started_at=db_now() if started else None))
    return id


def _requeue_orphans(tx: Connection, limits: DrainLimits) -> None:
    # While it works, a drain that is alive locks its batch's row.
    old = Batch.started_at < db_now_plus(-ORPHAN_AFTER_SECONDS)
    orphans = select(Batch.id, Batch.event_ids).where(old).with_for_update(skip_locked=True)
    for id, event_ids in tx.execute(orphans).all():
        _requeue_batch(tx, limits, ClaimedBatch(id, event_ids), WorkerCrashedError())


def _requeue_batch(tx: Connection, limits: DrainLimits, batch: ClaimedBatch, error: Exception) -> None:
    """Requeue a batch that failed, unless another drain took it over."""
    if _delete_batch(tx, batch.id):
        _requeue(tx, limits, batch.event_ids, error)


def _requeue(tx: Connection, limits: DrainLimits, ids: Sequence[str], error: Exception) -> None:
    """Requeue the halves of a batch that failed. An event that was alone uses one attempt.

    A transient error, such as a row that is locked for long, is not the event's fault and costs no attempt. It is
    recorded, and makes uncertain what the event may have changed.
    """
    log.warning("batch_failed", events=len(ids), error=type(error).__name__)
    if len(ids) > 1:
        middle = len(ids) // 2
        _insert_batch(tx, ids[:middle], started=False)
        _insert_batch(tx, ids[middle:], started=False)
        return
    alone = (Event.id == ids[0]) & (Event.status == EventStatus.PENDING)
    event = tx.execute(select(Event.attempts, Event.error).where(alone).with_for_update()).one_or_none()
    if event is None:
        return
    if is_transient(error):
        values = {"due_at": db_now_plus(limits.first_backoff), "error": _describe(error)}
    else:
        values = _failed_attempt(limits, event.attempts + 1, error)
        log.warning("event_failed", event_id=ids[0], attempts=event.attempts + 1, error=type(error).__name__)
        if not event.attempts:
            error_reports.capture(error, event_id=ids[0])
    tx.execute(update(Event).where(alone).values(values))
    attempts.note(tx, ids[0], values)
    if event.error is None:
        uncertainty.note_failure(tx, ids[0])


def _delete_batch(tx: Connection, id: str) -> bool:
    """Delete the record; return False if another drain took it over while this process was frozen."""
    return tx.execute(delete(Batch).where(Batch.id == id)).rowcount == 1


def _failed_attempt(limits: DrainLimits, attempts: int, error: Exception) -> dict[str, object]:
    """Return the columns of an event after a failed attempt: it is retried later, or marked as failed."""
    values: dict[str, object] = {"attempts": attempts, "error": _describe(error), "fingerprint": fingerprint(error)}
    values["traceback"] = None if isinstance(error, PayloadError) else stack_of(error)
    if isinstance(error, PayloadError) or attempts >= limits.max_attempts:
        return {**values, "status": EventStatus.FAILED, "processed_at": db_now()}
    return {**values, "due_at": db_now_plus(backoff(attempts, limits.first_backoff, MAX_BACKOFF_SECONDS))}


def _describe(error: Exception) -> str:
    """Return an error as one line, without the parameters of SQL statements."""
    if isinstance(error, PayloadError):
        return clean(str(error))
    message = what_is_wrong(error)[0] if isinstance(error, DBAPIError) else str(error)
    return clean(f"{type(error).__name__}: {message}".splitlines()[0])[:1000]


def _apply_batch(tx: Connection, limits: DrainLimits, batch: ClaimedBatch) -> list[float]:
    """Apply the events of a recorded batch, and delete the record.

    Returns when its events were accepted, as `AttemptedBatch.accepted_at`.
    """
    now = time.monotonic()  # measured again if the transaction is retried
    if not _delete_batch(tx, batch.id):
        log.info("batch_taken_over", batch=batch.id)
        return []
    applied = apply_by_id(tx, batch.event_ids, Event.status.not_in(NOT_PENDING))
    _record_outcomes(tx, limits, applied)
    return [now - age for age in applied.ages]


def _record_outcomes(tx: Connection, limits: DrainLimits, applied: "AppliedEvents") -> None:
    """Write the outcome of each event, and the changes."""
    for event, error in applied.failed:
        values = _failed_attempt(limits, event.attempts + 1, error)
        tx.execute(update(Event).where(Event.id == event.id).values(values))
        attempts.note(tx, event.id, values)
        if not event.has_failed:
            uncertainty.note_failure(tx, event.id)
        log.warning("event_failed", event_id=event.id, type=event.type, field=error.field)
        traces.note_failure(event.id, error)
    uncertainty.clear_after_events(tx, applied.tried_before)
    update_rows(tx, Event, [row for row in applied.done if row["id"] not in applied.drop_payload], **DONE)
    update_rows(tx, Event, [row for row in applied.done if row["id"] in applied.drop_payload], **DONE, body=None)
    attempts.forget(tx, applied.drop_payload & applied.tried_before)
    note_changes(tx, applied.changes)
    log.info("batch_applied", events=len(applied.done), changes=len(applied.changes))


class InboxEvent(NamedTuple):
    """The columns of an event in the inbox that are needed to apply it."""

    id: str
    type: str
    body: bytes | None
    attempts: int
    has_failed: bool
    """Whether its last attempt failed, even if that attempt was not counted."""
    replays: int
    received_at: datetime
    now: datetime
    traceparent: str | None

    @property
    def age(self) -> float:
        """Seconds since the event was accepted."""
        return (self.now - self.received_at).total_seconds()


def _inbox_events(
    *conditions: ColumnElement[bool],
) -> Select[str, str, bytes | None, int, bool, int, datetime, datetime, str | None]:
    has_failed = Event.error.is_not(None)
    state = (Event.attempts, has_failed, Event.replays)
    return select(Event.id, Event.type, Event.body, *state, Event.received_at, db_now(), Event.traceparent).where(
        *conditions
    )


ParsedEvent = tuple[InboxEvent, Envelope, Snapshot | None]
"""An event with its envelope and its snapshot. No snapshot: its type is ignored."""
FailedEvent = tuple[InboxEvent, PayloadError]


class AppliedEvents(NamedTuple):
    """The results of applying events.

    Attributes:
        done: for each usable event, new values of its columns in the inbox.
        failed: the unusable events, each with its error.
        changes: rows for `changes`.
        ages: seconds since each event was accepted, without replayed events.
        drop_payload: ids of done events whose payload is not kept: the type is ignored, or the person is erased.
        tried_before: ids of done events that were attempted before.
    """

    done: list[Record]
    failed: list[FailedEvent]
    changes: list[ChangeRow]
    ages: list[float]
    drop_payload: set[str]
    tried_before: set[str]


def apply_by_id(tx: Connection, ids: Sequence[str], where: ColumnElement[bool]) -> AppliedEvents:
    """Lock the events with these ids that meet the condition `where`, and apply them as `apply_events` does."""
    roles = lock_role_map(tx)
    events = tx.execute(_inbox_events(is_any_of(tx, Event.id, ids), where).order_by(Event.id).with_for_update()).all()
    return apply_events(tx, [InboxEvent(*event) for event in events], roles)


def apply_events(tx: Connection, events: Sequence[InboxEvent], roles: RoleMap) -> AppliedEvents:
    """Apply events, which are locked, to the mirror. The inbox is not written.

    If the caller rolls `tx` back, the result shows what would happen.
    """
    with traces.decision(events):
        parsed, failed = _parse(events, roles)
        arrivals = [
            Arrival(snapshot, Cause.EVENT, event.id, envelope.origin)
            for event, envelope, snapshot in parsed
            if snapshot is not None
        ]
        decisions, changes = apply(tx, arrivals)
    request_reads_for(tx, arrivals, decisions)
    decided = dict(zip((arrival.cause_id for arrival in arrivals), decisions, strict=True))
    done = [
        _done_columns(event.id, envelope.created_at, snapshot, decided.get(event.id))
        for event, envelope, snapshot in parsed
    ]
    ages = [event.age for event, _, _ in parsed if not event.replays]
    ignored = {columns["id"] for columns in done if columns["outcome"] == Outcome.IGNORED}
    tried_before = {event.id for event, _, _ in parsed if event.has_failed or event.replays}
    return AppliedEvents(done, failed, changes, ages, ignored | _events_of_erased_users(tx, arrivals), tried_before)


def _parse(events: Sequence[InboxEvent], roles: RoleMap) -> tuple[list[ParsedEvent], list[FailedEvent]]:
    """Return the usable events, and the unusable ones."""
    parsed: list[ParsedEvent] = []
    failed: list[FailedEvent] = []
    for event in events:
        try:
            envelope, snapshot = read_event(event.id, event.type, event.body or b"", roles)
        except PayloadError as error:
            failed.append((event, error))
        else:
            parsed.append((event, envelope, snapshot))
    return parsed, failed


def _done_columns(id: str, at: datetime | None, snapshot: Snapshot | None, decision: Decision | None) -> Record:
    """Return the inbox columns of an event that is done. Without a snapshot and a decision it is ignored."""
    columns: Record = {"id": id, "occurred_at": at, "outcome": Outcome.IGNORED}
    columns |= dict.fromkeys(("decided_by", "kind", "object_id", "organization_id"))
    if snapshot is not None and decision is not None:
        explains = decision.outcome in (Outcome.STALE, Outcome.TOMBSTONED) or decision.needs_confirmation
        columns |= {"outcome": decision.outcome, "decided_by": decision.compared_with if explains else None}
        columns |= {"kind": snapshot.kind.name, "object_id": snapshot.id}
        columns["organization_id"] = snapshot.kind.organization_of(snapshot.id, snapshot.state.content)
    return columns


def _events_of_erased_users(tx: Connection, arrivals: Sequence[Arrival]) -> set[str]:
    """Return the ids of the events about or by an erased user, or about a membership or invitation of one."""
    users = {
        event_id: person_of(snapshot.kind.name, snapshot.id, snapshot.state.content)
        for snapshot, _, event_id, _ in arrivals
    }
    actors = {event_id: origin.actor_id for _, _, event_id, origin in arrivals}
    erased = erased_users(tx, set(filter(None, (*users.values(), *actors.values()))))
    invitations = {event_id: snapshot.id for snapshot, _, event_id, _ in arrivals if snapshot.kind is INVITATION}
    if invitations:
        query = select(Invitation.id).where(is_any_of(tx, Invitation.id, invitations.values()), Invitation.erased)
        erased |= set(tx.execute(query).scalars())
    return {event_id for event_id, id in (*users.items(), *actors.items(), *invitations.items()) if id in erased}
