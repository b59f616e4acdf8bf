"""Replay: reprocesses stored events, after a fix or on suspicion. Idempotent, and safe at any time.

A replay only makes events pending again, a few at a time, with their attempts reset. The drain then processes them like
new ones.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, case, func, or_, select, update

from models.database import read_transaction, sqlite_write_lock, transactional
from models.tables import Action, Event, EventStatus, Run, RunStatus, Task
from models.types import db_now
from worker import audit
from worker.errors import AlreadyReplayedError, OperatorError
from worker.inbox.drain import NO_ERROR, apply_by_id
from worker.inbox.selection import Selection
from worker.leases import Lease
from worker.queue.doorbell import Doorbell
from worker.runs import create, finish

log = structlog.get_logger()

BATCH = 50
"""Upper bound on the events made pending in one transaction. A slow replay makes fewer, so that it can stop soon."""
PLAN_BATCH = 200
"""Events processed together by a dry run."""
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
    """How many rows would be added to `changes`, without those that auto-join derives from them."""


def plan(engine: Engine, selection: Selection) -> Plan:
    """Process the events of a selection as a replay would, and roll everything back.

    They are processed in batches that do not see each other's effects. Events of one object are usually in one batch.
    """
    outcomes: Counter[str] = Counter()
    changes = 0
    selected = select(Event.id, Event.body.is_(None).label("blanked")).where(*selection.replayable())
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
    replayable = selection.replayable()
    total = tx.execute(select(func.count()).select_from(Event).where(*replayable)).scalar_one()
    if not total:
        raise OperatorError("no event matches; see: workos-sync events list")
    wanted = selection.as_json()
    ended = select(Run.__table__).where(Run.task == Task.REPLAY, Run.status == RunStatus.DONE)
    recent = tx.execute(ended.order_by(Run.finished_at.desc()).limit(RECENT_REPLAYS))
    last = next((run for run in recent if run.selection == wanted), None)
    if last is not None and not again:
        changed = or_(Event.replay_id.is_(None), Event.replay_id != last.id, Event.status == EventStatus.FAILED)
        if tx.execute(select(Event.id).where(*replayable, Event.body.is_not(None), changed).limit(1)).first() is None:
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
    size = max(1, min(BATCH, int(per_second)))
    while not stopping():
        number = lease.in_transaction(engine, _requeue_batch, lease, size)
        if number is None:
            return True
        bell.ring()
        time.sleep(number / per_second)
    return False


def _requeue_batch(tx: Connection, lease: Lease, size: int) -> int | None:
    """Make up to `size` events pending; return how many, or None if there are no more."""
    run = tx.execute(select(Run.__table__).where(Run.id == lease.key)).one()
    # Events received after the replay was requested are not part of it.
    replayable = [*Selection.from_json(run.selection).replayable(), Event.received_at <= run.created_at]
    some = select(Event.id, Event.body.is_not(None)).where(*replayable, Event.id > (run.after or "")).order_by(Event.id)
    found = tx.execute(some.limit(size).with_for_update()).all()
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
def cancel(tx: Connection, run_id: str, actor: audit.Actor) -> bool:
    """Stop a running replay; return False if the run is not a running replay. Events already pending are processed."""
    running = (Run.id == run_id, Run.task == Task.REPLAY, Run.status == RunStatus.RUNNING)
    values = {"status": RunStatus.CANCELLED, "finished_at": db_now(), "error": f"cancelled by {actor.who}"}
    if not tx.execute(update(Run).where(*running).values(values)).rowcount:
        return False
    audit.note(tx, actor, Action.CANCEL_REPLAY, kind="run", object_id=run_id)
    return True
