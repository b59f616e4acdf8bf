"""Replay: reprocesses stored events, after a fix or on suspicion. Idempotent, and safe at any time.

A replay only makes events pending again, a few at a time, with their attempts reset. The drain then processes them like
new ones.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, case, func, or_, select, update

from models.database import in_transaction, read_transaction, sqlite_write_lock, transactional
from models.tables import Action, Event, EventStatus, Run, RunStatus, Task
from models.types import db_now, inline_literal
from worker import audit
from worker.errors import AlreadyReplayedError, OperatorError
from worker.inbox.drain import NO_ERROR, apply_by_id
from worker.inbox.selection import Selection
from worker.leases import Lease
from worker.mirror import uncertainty
from worker.queue.doorbell import Doorbell
from worker.runs import create, finish

log = structlog.get_logger()

BATCH = 50
"""Events made pending in one transaction."""
PLAN_BATCH = 200
"""Events processed together by a dry run."""
DISMISSED_AT_ONCE = 1_000
"""Events dismissed in one transaction."""
RECENT_REPLAYS = 100
"""Replays that are searched for one with the same selection."""


class Plan(NamedTuple):
    """The effects of a replay, as found by a dry run."""

    events: int
    """How many events are selected."""
    without_payload: int
    """How many of them cannot be replayed because their payload has been blanked."""
    outcomes: dict[str, int]
    """Outcome, or `failed`, to number of events."""
    changes: int
    """How many rows would be added to `changes`."""


def plan(engine: Engine, selection: Selection) -> Plan:
    """Process the events of a selection as a replay would, and roll everything back.

    They are processed in batches that do not see each other's effects. Events of one object are usually in one batch.
    """
    outcomes: Counter[str] = Counter()
    changes = 0
    selected = select(Event.id, Event.body.is_(None).label("blanked")).where(*selection.conditions())
    with read_transaction(engine) as tx:
        rows = tx.execute(selected.order_by(Event.object_id.nulls_last(), Event.id)).all()
    ids = [row.id for row in rows]
    for first in range(0, len(ids), PLAN_BATCH):
        with sqlite_write_lock(engine), engine.connect() as tx, tx.begin() as transaction:
            applied = apply_by_id(tx, ids[first : first + PLAN_BATCH], Event.body.is_not(None))
            transaction.rollback()
        outcomes.update(row["outcome"] for row in applied.done)
        outcomes["failed"] += len(applied.failed)
        changes += len(applied.changes)
    blanked = sum(row.blanked for row in rows)
    return Plan(len(rows), blanked, {name: number for name, number in outcomes.items() if number}, changes)


@transactional
def start(tx: Connection, selection: Selection, actor: audit.Actor, *, again: bool = False) -> str:
    """Create a replay for `actor` and return the id of its run.

    With `again`, a selection that was replayed before, and of which no event has failed since, is replayed again.

    Raises:
        BusyError: another replay is running.
        AlreadyReplayedError: the selection was replayed before, and `again` is false.
        OperatorError: no event matches.
    """
    matches = selection.conditions()
    total = tx.execute(select(func.count()).select_from(Event).where(*matches)).scalar_one()
    if not total:
        raise OperatorError("no event matches; see: workos-sync events list")
    wanted = selection.as_json()
    ended = select(Run.__table__).where(Run.task == Task.REPLAY, Run.status == RunStatus.DONE)
    recent = tx.execute(ended.order_by(Run.finished_at.desc()).limit(RECENT_REPLAYS))
    last = next((run for run in recent if run.selection == wanted), None)
    if last is not None and not again:
        changed = or_(Event.replay_id.is_(None), Event.replay_id != last.id, Event.status == EventStatus.FAILED)
        if tx.execute(select(Event.id).where(*matches, Event.body.is_not(None), changed).limit(1)).first() is None:
            raise AlreadyReplayedError(
                f"run {last.id} of {last.requested_by} replayed the same selection; to repeat it, use --again"
            )
    run_id = create(tx, Task.REPLAY, actor.who, selection=wanted, reason=actor.reason, total=total)
    audit.note(tx, actor, Action.REPLAY, kind="run", object_id=run_id, selection=wanted, events=total)
    return run_id


def replay(
    engine: Engine, lease: Lease, bell: Doorbell, per_second: float, stopping: Callable[[], bool] = lambda: False
) -> bool:
    """Work on a replay until all its events are pending again; return False if `stopping` stopped it before.

    Makes at most `per_second` events pending per second, and rings `bell` after each batch.

    Raises:
        LeaseLostError: another worker took over the run, or it was cancelled.
    """
    while not stopping():
        number = lease.in_transaction(engine, _requeue_batch, lease)
        if number is None:
            return True
        bell.ring()
        time.sleep(number / per_second)
    return False


def _requeue_batch(tx: Connection, lease: Lease) -> int | None:
    """Make the next events pending; return how many, or None if there are no more."""
    run = tx.execute(select(Run.__table__).where(Run.id == lease.key)).one()
    # Events received after the replay was requested are not part of it.
    matches = [*Selection.from_json(run.selection).conditions(), Event.received_at <= run.created_at]
    some = select(Event.id, Event.body.is_not(None)).where(*matches, Event.id > (run.after or "")).order_by(Event.id)
    found = tx.execute(some.limit(BATCH).with_for_update()).all()
    if not found:
        finish(tx, lease, RunStatus.DONE)
        log.info("replay_finished", run=run.id, events=run.done, skipped=run.skipped)
        return None
    usable = [id for id, has_body in found if has_body]
    reset: dict[str, object] = {**NO_ERROR, "status": EventStatus.PENDING, "attempts": 0, "due_at": db_now()}
    reset |= {"replay_id": run.id, "replays": Event.replays + 1, "dismissed_by": None, "dismissed_why": None}
    tx.execute(update(Event).where(Event.id.in_(usable)).values(reset))
    skipped = len(found) - len(usable)
    progress = {"after": found[-1].id, "done": Run.done + len(usable), "skipped": Run.skipped + skipped}
    tx.execute(update(Run).where(Run.id == run.id).values(progress))
    return len(usable)


def results(engine: Engine, run_id: str) -> dict[str, int]:
    """Return the current results of a run's events: outcome, or status if not done, to number of events."""
    result = case((Event.status == EventStatus.DONE, Event.outcome), else_=Event.status)
    counts = select(result, func.count()).where(Event.replay_id == run_id).group_by(result)
    with read_transaction(engine) as tx:
        return {str(word): number for word, number in tx.execute(counts)}


@transactional
def dismiss(tx: Connection, ids: Sequence[str], actor: audit.Actor) -> int:
    """Mark failed events as dismissed; return how many of `ids` had failed.

    Raises:
        ConfigurationError: `actor` gives no reason.
    """
    dismissed = _dismiss(tx, Event.id.in_(ids), actor)
    for id, organization_id in dismissed:
        about = {"kind": "event", "object_id": id, "organization_id": organization_id}
        audit.note(tx, actor, Action.DISMISS_EVENT, **about)
    return len(dismissed)


def dismiss_all(engine: Engine, selection: Selection, actor: audit.Actor, failed_by: datetime | None = None) -> int:
    """Mark all failed events of a selection as dismissed; return their number.

    With `failed_by`, an aware time, only those that had failed by then. The audit gets one row for each
    `DISMISSED_AT_ONCE` events.

    Raises:
        ConfigurationError: `actor` gives no reason.
    """
    total = 0
    while number := in_transaction(engine, _dismiss_some, selection, actor, failed_by):
        total += number
    return total


def _dismiss_some(tx: Connection, selection: Selection, actor: audit.Actor, failed_by: datetime | None) -> int:
    failed = [*selection.matches(), Event.status == inline_literal(EventStatus.FAILED)]
    if failed_by is not None:
        failed.append(Event.processed_at <= failed_by)
    some = select(Event.id).where(*failed).limit(DISMISSED_AT_ONCE)
    number = len(_dismiss(tx, Event.id.in_(some), actor))
    if number:
        wanted = selection.as_json()
        audit.note(tx, actor, Action.DISMISS_EVENT, kind="event", selection=wanted, events=number)
    return number


def _dismiss(tx: Connection, which: ColumnElement[bool], actor: audit.Actor) -> list[tuple[str, str | None]]:
    """Dismiss the failed events that meet a condition; return id and workspace of each, sorted."""
    failed = update(Event).where(which, Event.status == EventStatus.FAILED)
    values = {"status": EventStatus.DISMISSED, "dismissed_by": actor.who, "dismissed_why": actor.reason}
    dismissed = tx.execute(failed.values(values).returning(Event.id, Event.organization_id)).all()
    uncertainty.clear_after_events(tx, [id for id, _ in dismissed])
    return sorted((id, organization_id) for id, organization_id in dismissed)


@transactional
def cancel(tx: Connection, run_id: str, actor: audit.Actor) -> bool:
    """Stop a running replay; return False if the run is not a running replay. Events already pending are processed."""
    running = (Run.id == run_id, Run.task == Task.REPLAY, Run.status == RunStatus.RUNNING)
    values = {"status": RunStatus.CANCELLED, "finished_at": db_now(), "error": f"cancelled by {actor.who}"}
    if not tx.execute(update(Run).where(*running).values(values)).rowcount:
        return False
    audit.note(tx, actor, Action.CANCEL_REPLAY, kind="run", object_id=run_id)
    return True
