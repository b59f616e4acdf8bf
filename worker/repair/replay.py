"""Replay: decide stored events again, after a fix or on suspicion. Safe at any time: what should not change does not.

A run of it only puts events back to pending, a few at a time, each with a fresh budget of attempts; the drains do the
rest. So a replay obeys the same decision, in the same transactions, as a webhook.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, case, func, or_, select, update

from models.database import in_transaction, read_transaction, sqlite_write_lock
from models.tables import Event, EventStatus, Run, RunStatus, Task
from models.types import db_now, inline_literal
from worker.decision.decide import Outcome
from worker.errors import AlreadyReplayedError, OperatorError
from worker.inbox.drain import NO_ERROR, decide_events
from worker.queue.doorbell import Doorbell
from worker.runs import Lease, create, finish

log = structlog.get_logger()

STEP = 50
"""Events put back to pending in one transaction."""
PLAN_STEP = 200
LOOKED_BACK = 100
"""Replays among which the same one is looked for."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events to replay: those that fulfil all that is given. Times are aware."""

    ids: tuple[str, ...] = ()
    failed: bool = False
    type: str | None = None
    organization_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    fingerprint: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what is given, times as ISO 8601 text."""
        given = {name: value for name, value in asdict(self).items() if value}
        return {n: v.isoformat() if isinstance(v, datetime) else list(v) if n == "ids" else v for n, v in given.items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Selection":
        """Return what `as_json` made."""
        values: dict[str, Any] = dict(stored)
        for name in ("since", "until"):
            if name in values:
                values[name] = datetime.fromisoformat(values[name])
        return cls(**values | {"ids": tuple(values.get("ids", ()))})

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the selection as conditions on the inbox. What is pending is decided soon in any case."""
        failed = Event.status == inline_literal(EventStatus.FAILED)
        found: list[ColumnElement[bool]] = []
        if self.ids:  # which may name dismissed ones too
            found += [Event.id.in_(self.ids), Event.status != EventStatus.PENDING]
        if self.failed or self.fingerprint:
            found.append(failed)
        elif not self.ids:
            # An ignored event without a payload would only be ignored again.
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
    """What a replay would do: events, those whose payload is gone, and what would become of the others."""

    events: int
    without_payload: int
    outcomes: dict[str, int]
    changes: int


def count(engine: Engine, selection: Selection) -> tuple[int, int]:
    """Return how many events a selection names, and how many of them have no payload any more."""
    counted = select(func.count(), func.count().filter(Event.body.is_(None))).where(*selection.conditions())
    with read_transaction(engine) as tx:
        number, gone = tx.execute(counted).one()
        return number, gone


def plan(engine: Engine, selection: Selection) -> Plan:
    """Decide the events of a selection as a replay would, and take it back.

    Each few hundred are decided for themselves, those of one object together where they are known to be.
    """
    number, gone = count(engine, selection)
    outcomes: Counter[str] = Counter()
    changes = 0
    ordered = (Event.object_id.nulls_last(), Event.id)
    with read_transaction(engine) as tx:
        ids = list(tx.execute(select(Event.id).where(*selection.conditions()).order_by(*ordered)).scalars())
    for first in range(0, len(ids), PLAN_STEP):
        with sqlite_write_lock(engine), engine.connect() as tx, tx.begin() as taken_back:
            decided = decide_events(tx, ids[first : first + PLAN_STEP], Event.body.is_not(None))
            taken_back.rollback()
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
        why: the reason to keep.
        again: even if the same was replayed before and nothing has failed since.

    Raises:
        BusyError: another replay is in progress.
        AlreadyReplayedError: see `again`.
        OperatorError: no event matches.
    """

    def made(tx: Connection) -> str:
        fits = selection.conditions()
        total = tx.execute(select(func.count()).select_from(Event).where(*fits)).scalar_one()
        if not total:
            raise OperatorError("no event matches; to see them, run: workos-sync events list")
        last = _same_before(tx, selection)
        if last is not None and not again:
            fresh = or_(Event.replay_id.is_(None), Event.replay_id != last.id, Event.status == EventStatus.FAILED)
            if tx.execute(select(Event.id).where(*fits, Event.body.is_not(None), fresh).limit(1)).first() is None:
                raise AlreadyReplayedError(
                    f"run {last.id} by {last.requested_by} replayed the same events; to replay them again, add --again"
                )
        shown = selection.as_json()
        return create(tx, Task.REPLAY, who, selection=shown, reason=why, total=total)

    return in_transaction(engine, made)


def _same_before(tx: Connection, selection: Selection) -> Any:
    ended = (Run.task == Task.REPLAY, Run.status == RunStatus.DONE)
    runs = tx.execute(select(Run.__table__).where(*ended).order_by(Run.finished_at.desc()).limit(LOOKED_BACK))
    return next((run for run in runs if run.selection == selection.as_json()), None)


def replay(
    engine: Engine, held: Lease, bell: Doorbell, per_second: float, stopping: Callable[[], bool] = lambda: False
) -> bool:
    """Go on with a replay until all its events are pending again; False if it was left off.

    Raises:
        LeaseLostError: another worker has it now, or it was cancelled.
    """
    while not stopping():
        number = in_transaction(engine, _step, held)
        if number is None:
            return True
        bell.ring()
        time.sleep(number / per_second)
    return False


def _step(tx: Connection, held: Lease) -> int | None:
    """Put the next few events back to pending; return how many, None when that was all."""
    held.check(tx)
    run = tx.execute(select(Run.__table__).where(Run.id == held.run_id)).one()
    # What came, or failed, after it was asked for is not part of it.
    fits = [*Selection.from_json(run.selection).conditions(), Event.received_at <= run.created_at]
    some = select(Event.id, Event.body.is_not(None)).where(*fits, Event.id > (run.after or "")).order_by(Event.id)
    found = tx.execute(some.limit(STEP).with_for_update()).all()
    if not found:
        finish(tx, held, RunStatus.DONE)
        log.info("replayed", run=run.id, events=run.done, skipped=run.skipped)
        return None
    usable = [id for id, has_body in found if has_body]
    fresh: dict[str, Any] = {**NO_ERROR, "status": EventStatus.PENDING, "attempts": 0, "due_at": db_now()}
    fresh |= {"replay_id": run.id, "replays": Event.replays + 1, "dismissed_by": None, "dismissed_why": None}
    tx.execute(update(Event).where(Event.id.in_(usable)).values(fresh))
    gone = len(found) - len(usable)
    progress = {"after": found[-1].id, "done": Run.done + len(usable), "skipped": Run.skipped + gone}
    tx.execute(update(Run).where(Run.id == run.id).values(progress))
    return len(usable)


def results(engine: Engine, run_id: str) -> dict[str, int]:
    """Return what has become by now of the events a run replayed: outcome, or status, to number."""
    become = case((Event.status == EventStatus.DONE, Event.outcome), else_=Event.status)
    shown = select(become, func.count()).where(Event.replay_id == run_id).group_by(become)
    with read_transaction(engine) as tx:
        return {str(word): number for word, number in tx.execute(shown)}


def dismiss(engine: Engine, ids: Sequence[str], who: str, why: str) -> int:
    """Note that failed events need not be applied, by whom and why; return how many of `ids` were failed."""
    which = update(Event).where(Event.id.in_(ids), Event.status == EventStatus.FAILED)
    values = {"status": EventStatus.DISMISSED, "dismissed_by": who, "dismissed_why": why}
    return in_transaction(engine, lambda tx: tx.execute(which.values(values)).rowcount)


def cancel(engine: Engine, run_id: str, who: str) -> bool:
    """Stop a replay where it is; False if it is none, or over. What it put back to pending is decided all the same."""
    running = (Run.id == run_id, Run.task == Task.REPLAY, Run.status == RunStatus.RUNNING)
    values = {"status": RunStatus.CANCELLED, "finished_at": db_now(), "error": f"cancelled by {who}"}
    return in_transaction(engine, lambda tx: tx.execute(update(Run).where(*running).values(values)).rowcount == 1)
