"""Replay: reprocesses stored events, after a fix or on suspicion. Idempotent, and safe at any time.

A replay only makes events pending again, a few at a time, with their attempts reset. The drain then processes them, so
that they go through the same decision and transactions as webhooks.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import NamedTuple

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, case, func, or_, select, update

from models.database import in_transaction, read_transaction, sqlite_write_lock
from models.outcomes import Outcome
from models.tables import Event, EventStatus, Run, RunStatus, Task
from models.types import JsonObject, db_now, inline_literal
from worker.errors import AlreadyReplayedError, OperatorError
from worker.inbox.drain import NO_ERROR, decide_events
from worker.leases import Lease
from worker.queue.doorbell import Doorbell
from worker.runs import create, finish

log = structlog.get_logger()

BATCH = 50
"""Events made pending in one transaction."""
PLAN_BATCH = 200
"""Events processed together by a dry run."""
RECENT_REPLAYS = 100
"""Replays that are searched for one with the same selection."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events to replay: those that match all given fields. Times are aware and compared with `received_at`."""

    ids: tuple[str, ...] = ()
    failed: bool = False
    type: str | None = None
    organization_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    fingerprint: str | None = None

    def as_json(self) -> JsonObject:
        """Return the given fields, with times as ISO 8601 text."""
        given = {name: value for name, value in asdict(self).items() if value}
        return {n: v.isoformat() if isinstance(v, datetime) else list(v) if n == "ids" else v for n, v in given.items()}

    @classmethod
    def from_json(cls, stored: JsonObject) -> "Selection":
        """Return the selection that `as_json` returned."""
        values: JsonObject = dict(stored)
        for name in ("since", "until"):
            if name in values:
                values[name] = datetime.fromisoformat(values[name])
        return cls(**values | {"ids": tuple(values.get("ids", ()))})

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the selection as conditions on `Event`. Pending events never match: they are processed soon anyway."""
        failed = Event.status == inline_literal(EventStatus.FAILED)
        found: list[ColumnElement[bool]] = []
        if self.ids:  # may include dismissed events
            found += [Event.id.in_(self.ids), Event.status != EventStatus.PENDING]
        if self.failed or self.fingerprint:
            found.append(failed)
        elif not self.ids:
            # An ignored event without a payload would be ignored again.
            useful = or_(Event.body.is_not(None), Event.outcome != Outcome.IGNORED)
            found.append(or_(failed, (Event.status == EventStatus.DONE) & useful))
        if self.type:
            found.append(Event.type == self.type)
        if self.organization_id:
            found.append(Event.organization_id == self.organization_id)
        if self.since:
            found.append(Event.received_at >= self.since)
        if self.until:
            found.append(Event.received_at < self.until)
        if self.fingerprint:
            found.append(Event.fingerprint == self.fingerprint)
        return found


class Plan(NamedTuple):
    """What a replay would do.

    Attributes:
        events: events selected.
        without_payload: those that cannot be replayed because their payload has been blanked.
        outcomes: outcome, or `failed`, to number of events.
        changes: rows that would be added to `changes`.
    """

    events: int
    without_payload: int
    outcomes: dict[str, int]
    changes: int


def count(engine: Engine, selection: Selection) -> tuple[int, int]:
    """Return how many events a selection matches, and how many of them no longer have a payload."""
    counted = select(func.count(), func.count().filter(Event.body.is_(None))).where(*selection.conditions())
    with read_transaction(engine) as tx:
        number, gone = tx.execute(counted).one()
        return number, gone


def plan(engine: Engine, selection: Selection) -> Plan:
    """Process the events of a selection as a replay would, and roll everything back.

    They are processed in batches that do not see each other's effects. Events of one object are usually in one batch.
    """
    number, gone = count(engine, selection)
    outcomes: Counter[str] = Counter()
    changes = 0
    ordered = (Event.object_id.nulls_last(), Event.id)
    with read_transaction(engine) as tx:
        ids = list(tx.execute(select(Event.id).where(*selection.conditions()).order_by(*ordered)).scalars())
    for first in range(0, len(ids), PLAN_BATCH):
        with sqlite_write_lock(engine), engine.connect() as tx, tx.begin() as transaction:
            decided = decide_events(tx, ids[first : first + PLAN_BATCH], Event.body.is_not(None))
            transaction.rollback()
        outcomes.update(row["outcome"] for row in decided.done)
        outcomes["failed"] += len(decided.failed)
        changes += len(decided.changes)
    return Plan(number, gone, {name: n for name, n in outcomes.items() if n}, changes)


def start(engine: Engine, selection: Selection, who: str, why: str | None, *, again: bool = False) -> str:
    """Create a replay and return the id of its run.

    Args:
        engine: the database.
        selection: which events.
        who: the operator.
        why: the operator's reason, recorded with the run.
        again: whether to repeat a selection that was replayed before and has not failed since.

    Raises:
        BusyError: another replay is running.
        AlreadyReplayedError: the selection was replayed before, and `again` is false.
        OperatorError: no event matches.
    """

    def insert(tx: Connection) -> str:
        matches = selection.conditions()
        total = tx.execute(select(func.count()).select_from(Event).where(*matches)).scalar_one()
        if not total:
            raise OperatorError("no event matches; see: workos-sync events list")
        last = _same_before(tx, selection)
        if last is not None and not again:
            changed = or_(Event.replay_id.is_(None), Event.replay_id != last.id, Event.status == EventStatus.FAILED)
            if tx.execute(select(Event.id).where(*matches, Event.body.is_not(None), changed).limit(1)).first() is None:
                raise AlreadyReplayedError(
                    f"run {last.id} of {last.requested_by} replayed the same selection; to repeat it, use --again"
                )
        shown = selection.as_json()
        return create(tx, Task.REPLAY, who, selection=shown, reason=why, total=total)

    return in_transaction(engine, insert)


class EarlierReplay(NamedTuple):
    """A replay that is done."""

    id: str
    requested_by: str
    selection: JsonObject | None


def _same_before(tx: Connection, selection: Selection) -> EarlierReplay | None:
    ended = (Run.task == Task.REPLAY, Run.status == RunStatus.DONE)
    runs = select(Run.id, Run.requested_by, Run.selection).where(*ended)
    newest = tx.execute(runs.order_by(Run.finished_at.desc()).limit(RECENT_REPLAYS))
    return next((run for row in newest if (run := EarlierReplay(*row)).selection == selection.as_json()), None)


def replay(
    engine: Engine, held: Lease, bell: Doorbell, per_second: float, stopping: Callable[[], bool] = lambda: False
) -> bool:
    """Work on a replay until all its events are pending again; return False if it stopped before.

    Args:
        engine: the database.
        held: the lease of the run.
        bell: rung after each batch.
        per_second: maximum number of events per second.
        stopping: returns whether to stop early; asked between batches.

    Raises:
        LeaseLostError: another worker took over the run, or it was cancelled.
    """
    while not stopping():
        number = in_transaction(engine, _requeue_batch, held)
        if number is None:
            return True
        bell.ring()
        time.sleep(number / per_second)
    return False


def _requeue_batch(tx: Connection, held: Lease) -> int | None:
    """Make the next events pending; return how many, or None if there are no more."""
    held.check(tx)
    run = tx.execute(select(Run.__table__).where(Run.id == held.run_id)).one()
    # Events received after the replay was requested are not part of it.
    matches = [*Selection.from_json(run.selection).conditions(), Event.received_at <= run.created_at]
    some = select(Event.id, Event.body.is_not(None)).where(*matches, Event.id > (run.after or "")).order_by(Event.id)
    found = tx.execute(some.limit(BATCH).with_for_update()).all()
    if not found:
        finish(tx, held, RunStatus.DONE)
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
    shown = select(result, func.count()).where(Event.replay_id == run_id).group_by(result)
    with read_transaction(engine) as tx:
        return {str(word): number for word, number in tx.execute(shown)}


def dismiss(engine: Engine, ids: Sequence[str], who: str, why: str) -> int:
    """Mark failed events as dismissed by `who` because of `why`; return how many of `ids` had failed."""
    which = update(Event).where(Event.id.in_(ids), Event.status == EventStatus.FAILED)
    values = {"status": EventStatus.DISMISSED, "dismissed_by": who, "dismissed_why": why}
    return in_transaction(engine, lambda tx: tx.execute(which.values(values)).rowcount)


def cancel(engine: Engine, run_id: str, who: str) -> bool:
    """Stop a running replay; return False if the run is not a running replay. Events already pending are processed."""
    running = (Run.id == run_id, Run.task == Task.REPLAY, Run.status == RunStatus.RUNNING)
    values = {"status": RunStatus.CANCELLED, "finished_at": db_now(), "error": f"cancelled by {who}"}
    return in_transaction(engine, lambda tx: tx.execute(update(Run).where(*running).values(values)).rowcount == 1)
