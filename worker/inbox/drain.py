"""Drain: apply what is pending, in batches, each in one transaction.

A batch is written down and committed before it is tried, and struck out by the transaction that applies it. What is
still written down after its drain is gone did not finish, and runs again in halves. So the one event that cannot be
applied, or kills the process, ends up alone; only there does an event spend an attempt.
"""

import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from rq.timeouts import JobTimeoutException
from sqlalchemy import ColumnElement, Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from models.bulk import is_any_of, update_rows
from models.database import CLAIM_LOCK, SQLITE_BATCH, advisory_lock, in_transaction, is_transient
from models.tables import Batch, Event, EventStatus, Mirror
from models.types import db_now, db_now_plus, inline_literal
from worker.decision.decide import Outcome
from worker.decision.payload import clean
from worker.errors import PayloadError, WorkerCrashedError, fingerprint, stack_of
from worker.kinds import Snapshot, read_event
from worker.kinds.user import USER, User
from worker.mirror.apply import Arrival, apply, note_changes
from worker.mirror.read_requests import request_reads_for

log = structlog.get_logger()

ORPHAN_AFTER_SECONDS = 15.0
"""A batch that was started longer ago and is locked by no one has lost its drain."""
PARTITIONS = 4
"""Of a backlog on PostgreSQL: so many drains work beside each other without waiting for each other's rows."""

NO_ERROR = {"error": None, "fingerprint": None, "traceback": None}
"""What stands of an error on an event that did not fail, or is to be tried anew."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How a drain works: events in a batch, attempts of one event, first and longest back-off in seconds."""

    batch_size: int = 1000
    max_attempts: int = 10
    first_backoff: float = 1.0
    longest_backoff: float = 3600.0
    seconds: float = 20.0
    """A drain stops after this long, so that its job ends well before RQ would end it."""

    def backoff(self, attempts: int) -> float:
        """Return the seconds to wait after `attempts` failed attempts."""
        return float(min(self.first_backoff * 2.0 ** min(attempts - 1, 60), self.longest_backoff))


class ClaimedBatch(NamedTuple):
    """A batch as written down. `last`: nothing else was due when it was taken."""

    id: str
    event_ids: list[str]
    last: bool = False


def drain(engine: Engine, policy: Policy, applied: Callable[[list[float]], None] = lambda _: None) -> bool:
    """Apply pending events until none is due; return False if it stopped earlier, for its time was up.

    Args:
        engine: the database.
        policy: how it works.
        applied: told, after each commit, how old the events in it were, in seconds since they were accepted; those that
            are replayed are not counted.

    Raises:
        sqlalchemy.exc.DBAPIError: the database is away; the sweep will ring again.
        rq.timeouts.JobTimeoutException: RQ ended the job; the batch in work was set aside.
    """
    ends = time.monotonic() + policy.seconds
    while time.monotonic() < ends:
        batch = in_transaction(engine, _claim_batch, policy)
        if batch is None:
            return True
        ages = _work(engine, policy, batch)
        if ages is None:
            continue  # its halves, or what others left
        applied(ages)
        if batch.last:
            return True  # whoever came since has rung
    return False


def _work(engine: Engine, policy: Policy, batch: ClaimedBatch) -> list[float] | None:
    """Apply a batch, and return as `_apply_batch`; None if it could not be applied."""
    try:
        ages, since = in_transaction(engine, lambda tx: (_apply_batch(tx, policy, batch), time.monotonic()))
    except Exception as error:
        if is_transient(error):
            # Locks held for long are nobody's fault. With the database away this fails too, and the batch waits.
            in_transaction(engine, _requeue_locked, policy, batch)
            return None
        # A poison event may raise anything: it is noted on its row.
        failure = error
        in_transaction(engine, _requeue_failed, policy, batch, failure)
        if isinstance(error, JobTimeoutException):
            raise
        return None
    commit = time.monotonic() - since
    return [age + commit for age in ages]


def _claim_batch(tx: Connection, policy: Policy) -> ClaimedBatch | None:
    """Choose what to do next and write it down: a half of an unfinished batch first, else what is pending and due."""
    advisory_lock(tx, CLAIM_LOCK)
    standing = _open_batches(tx)
    if any(batch.orphaned for batch in standing):
        _requeue_orphans(tx, policy)
        standing = _open_batches(tx)
    left = [batch for batch in standing if batch.started_at is None]
    if left:
        tx.execute(update(Batch).where(Batch.id == left[0].id).values(started_at=db_now()))
        return ClaimedBatch(left[0].id, left[0].event_ids)
    taken = {event_id for batch in standing for event_id in batch.event_ids}
    size, partitions = policy.batch_size, PARTITIONS
    if tx.dialect.name == "sqlite":
        size, partitions = min(size, SQLITE_BATCH), 1  # it has one writer: drains have nothing to divide
    due = (
        select(Event.id, Event.partition_key)
        .where(Event.status == inline_literal(EventStatus.PENDING), Event.due_at <= db_now())
        .order_by(Event.due_at, Event.id)
        .limit(size * partitions + len(taken))
    )
    known = [(id, key % partitions) for id, key in tx.execute(due).all()]
    free = [(id, partition) for id, partition in known if id not in taken]
    chosen = _choose_events(free, {partition for id, partition in known if id in taken}, size)
    return (
        ClaimedBatch(_insert_batch(tx, chosen, started=True), chosen, len(chosen) == len(free) < size)
        if chosen
        else None
    )


def _choose_events(free: Sequence[tuple[str, int]], busy: Collection[int], size: int) -> list[str]:
    """Return which of the free events, each with its partition, one drain takes: all, if they fit into a batch.

    If not, it takes those of a partition that no other drain is busy with, so that neither waits for the other's rows.
    Where there is no such partition, it may have to wait.
    """
    if len(free) <= size:
        return [id for id, _ in free]
    mine = next((partition for _, partition in free if partition not in busy), free[0][1])
    return [id for id, partition in free if partition == mine][:size]


def _open_batches(tx: Connection) -> Sequence[Any]:
    orphaned = Batch.started_at < db_now_plus(-ORPHAN_AFTER_SECONDS)
    return tx.execute(select(Batch.id, Batch.event_ids, Batch.started_at, orphaned.label("orphaned"))).all()


def _insert_batch(tx: Connection, event_ids: Sequence[str], *, started: bool) -> str:
    id = uuid.uuid4().hex
    tx.execute(insert(Batch).values(id=id, event_ids=list(event_ids), started_at=db_now() if started else None))
    return id


def _requeue_orphans(tx: Connection, policy: Policy) -> None:
    # A living drain holds the lock on its batch's row while it works.
    orphans = (
        select(Batch.id, Batch.event_ids)
        .where(Batch.started_at < db_now_plus(-ORPHAN_AFTER_SECONDS))
        .with_for_update(skip_locked=True)
    )
    for id, event_ids in tx.execute(orphans).all():
        log.warning("batch_unfinished", batch=id, events=len(event_ids))
        tx.execute(delete(Batch).where(Batch.id == id))
        _bisect(tx, policy, ClaimedBatch(id, event_ids), WorkerCrashedError())


def _requeue_failed(tx: Connection, policy: Policy, batch: ClaimedBatch, error: Exception) -> None:
    if _delete_batch(tx, batch):
        log.warning("batch_failed", batch=batch.id, events=len(batch.event_ids), error=type(error).__name__)
        _bisect(tx, policy, batch, error)


def _requeue_locked(tx: Connection, policy: Policy, batch: ClaimedBatch) -> None:
    """Leave a batch that met locks for later: in halves, so that one locked row holds up only its own events."""
    if not _delete_batch(tx, batch):
        return
    log.warning("batch_given_back", batch=batch.id, events=len(batch.event_ids))
    if len(batch.event_ids) > 1:
        _insert_halves(tx, batch)
    else:
        later = {"due_at": db_now_plus(policy.first_backoff)}
        tx.execute(update(Event).where(Event.id == batch.event_ids[0]).values(later))


def _insert_halves(tx: Connection, batch: ClaimedBatch) -> None:
    middle = len(batch.event_ids) // 2
    for half in (batch.event_ids[:middle], batch.event_ids[middle:]):
        _insert_batch(tx, half, started=False)


def _delete_batch(tx: Connection, batch: ClaimedBatch) -> bool:
    """Strike out the batch, which locks it until the commit; False if another drain took it over meanwhile.

    That happens to a drain that was stopped for long.
    """
    return tx.execute(delete(Batch).where(Batch.id == batch.id)).rowcount == 1


def _bisect(tx: Connection, policy: Policy, batch: ClaimedBatch, error: Exception) -> None:
    """Go on with a batch that was struck out and not applied."""
    if len(batch.event_ids) > 1:
        _insert_halves(tx, batch)
        return
    alone = (Event.id == batch.event_ids[0]) & (Event.status == EventStatus.PENDING)
    attempts = tx.execute(select(Event.attempts).where(alone).with_for_update()).scalar_one_or_none()
    if attempts is not None:
        tx.execute(update(Event).where(alone).values(_failed_attempt(policy, attempts + 1, error)))
        log.warning("event_failed", event_id=batch.event_ids[0], attempts=attempts + 1, error=type(error).__name__)


def _failed_attempt(policy: Policy, attempts: int, error: Exception) -> dict[str, Any]:
    """Return what a failed attempt leaves on its event: tried again later, or set aside for an operator."""
    values: dict[str, Any] = {"attempts": attempts, "error": describe(error), "fingerprint": fingerprint(error)}
    values["traceback"] = None if isinstance(error, PayloadError) else stack_of(error)
    if isinstance(error, PayloadError) or attempts >= policy.max_attempts:
        return {**values, "status": EventStatus.FAILED, "processed_at": db_now()}
    return {**values, "due_at": db_now_plus(policy.backoff(attempts))}


def describe(error: Exception) -> str:
    """Return `error` as the inbox keeps it: one line without parameters of statements."""
    if isinstance(error, PayloadError):
        return clean(str(error))
    message = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return clean(f"{type(error).__name__}: {message}".splitlines()[0])[:1000]


def _apply_batch(tx: Connection, policy: Policy, batch: ClaimedBatch) -> list[float]:
    """Apply the events of a batch, note what became of each, and strike out the batch, all in `tx`.

    Returns how long ago each was accepted, in seconds.
    """
    began = time.monotonic()
    if not _delete_batch(tx, batch):
        log.info("batch_taken_over", batch=batch.id)
        return []
    done, failed, changes, ages, unkept = decide_events(tx, batch.event_ids, Event.status == EventStatus.PENDING)
    for event, error in failed:
        values = _failed_attempt(policy, event.attempts + 1, error)
        tx.execute(update(Event).where(Event.id == event.id).values(values))
        log.warning("event_failed", event_id=event.id, type=event.type, field=error.field)
    _mark_done(tx, done, unkept)
    note_changes(tx, changes)
    log.info("batch_applied", batch=batch.id, events=len(done), changes=len(changes))
    return [age + time.monotonic() - began for age in ages]


class Decided(NamedTuple):
    """What events come to: rows for the inbox, those that cannot be used and why, and rows for `changes`.

    `ages`: how long ago those that are decided for the first time were accepted, in seconds.
    `unkept`: the ids of those done whose payload is not kept, because it is of an ignored type or of an erased person.
    """

    done: list[dict[str, Any]]
    failed: list[tuple[Any, PayloadError]]
    changes: list[dict[str, Any]]
    ages: list[float]
    unkept: set[str]


def decide_events(tx: Connection, ids: Sequence[str], *which: ColumnElement[bool]) -> Decided:
    """Lock events, decide them and write the mirror in `tx`; nothing is noted of them yet.

    Args:
        tx: the caller's transaction; rolled back, it was only a question.
        ids: of the events.
        which: further conditions on them.
    """
    # Shared: a new role map waits for the batches that read the old one.
    roles, now = tx.execute(select(Mirror.role_map, db_now()).with_for_update(read=True)).one()
    told = (Event.id, Event.type, Event.body, Event.attempts, Event.received_at, Event.replays)
    query = select(*told).where(is_any_of(tx, Event.id, ids), *which)
    done: list[dict[str, Any]] = []
    failed: list[tuple[Any, PayloadError]] = []
    arrivals: list[Arrival] = []
    ages: list[float] = []
    for event in tx.execute(query.order_by(Event.id).with_for_update()).all():
        try:
            envelope, snapshot = read_event(event.id, event.type, event.body, roles)
        except PayloadError as error:
            failed.append((event, error))
            continue
        row = {"id": event.id, "occurred_at": envelope.created_at, "outcome": Outcome.IGNORED, "decided_by": None}
        done.append(row | _subject_columns(snapshot))
        if not event.replays:
            ages.append((now - event.received_at).total_seconds())
        if snapshot is not None:
            arrivals.append(Arrival(snapshot, "event", event.id))
    decisions, changes = apply(tx, arrivals)
    request_reads_for(tx, arrivals, decisions)
    against = dict(zip((arrival.cause_id for arrival in arrivals), decisions, strict=True))
    for row in done:
        if decision := against.get(row["id"]):
            lost = decision.outcome in (Outcome.STALE, Outcome.TOMBSTONED)
            row |= {"outcome": decision.outcome, "decided_by": decision.against if lost else None}
    unkept = {row["id"] for row in done if row["outcome"] == Outcome.IGNORED} | _of_erased(tx, arrivals)
    return Decided(done, failed, changes, ages, unkept)


def _of_erased(tx: Connection, arrivals: Sequence[Arrival]) -> set[str]:
    """Return the ids of the events about an erased user, or a membership of one."""
    users = {arrival.cause_id: user for arrival in arrivals if (user := _user_of(arrival.snapshot))}
    if not users:
        return set()
    found = tx.execute(select(User.id).where(is_any_of(tx, User.id, set(users.values())), User.erased))
    erased = set(found.scalars())
    return {event_id for event_id, user in users.items() if user in erased}


def _user_of(snapshot: Snapshot) -> str | None:
    if snapshot.kind is USER:
        return snapshot.id
    return snapshot.state.content.get("user_id")


def _subject_columns(snapshot: Snapshot | None) -> dict[str, str | None]:
    """Return what the inbox row says its event was about."""
    if snapshot is None:
        return {"kind": None, "object_id": None, "organization_id": None}
    organization_id = snapshot.kind.organization_of(snapshot.id, snapshot.state.content)
    return {"kind": snapshot.kind.name, "object_id": snapshot.id, "organization_id": organization_id}


def _mark_done(tx: Connection, done: list[dict[str, Any]], unkept: Collection[str]) -> None:
    noted: dict[str, Any] = {**NO_ERROR, "status": EventStatus.DONE, "processed_at": db_now()}
    update_rows(tx, Event, [row for row in done if row["id"] not in unkept], **noted)
    update_rows(tx, Event, [row for row in done if row["id"] in unkept], **noted, body=None)
