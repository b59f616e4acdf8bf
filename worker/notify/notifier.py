"""Notifies each target of `NOTIFY` when conditions begin, continue and end.

The database records which conditions were reported to each target, so that a restart repeats no message. Sending a
message and recording it cannot be one transaction: if a process is killed between the two, another process sends the
message again, with the same id.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, delete, insert, select, update

from models.bulk import dialect_insert
from models.database import in_transaction, read_transaction
from models.tables import Notice, NotifyTarget
from models.types import db_now, db_now_plus
from worker.backoff import backoff
from worker.errors import LeaseLostError, NotifyError, unexpected
from worker.leases import Lease, LeasedTable
from worker.notify.message import Sender, make_message
from worker.notify.plan import Active, Key, Plan, Recorded, plan
from worker.notify.targets import Target

log = structlog.get_logger()

NOTIFY_TICK = "notify"
"""The row of `ticks` through which only one process at a time compares conditions with the records."""
INTERVALS = 3
"""Interval of the comparisons, as a multiple of `REPAIR_SECONDS`."""
FIRST_BACKOFF_SECONDS = 15.0
MAX_BACKOFF_SECONDS = 600.0
OWN_FAILURE = "notify_failed"
"""The condition about a failing target. It is reported only to the other targets."""
TARGETS = LeasedTable(NotifyTarget.name, NotifyTarget.leased_until, NotifyTarget.fence)
COLUMNS = [Notice.__table__.c[name] for name in Recorded._fields]


class _State(NamedTuple):
    """The conditions recorded for a target, its failures in a row, and whether a message may be sent now."""

    recorded: dict[Key, Recorded]
    attempts: int
    due: bool
    now: datetime


@dataclass(frozen=True, slots=True)
class Notifier:
    """Compares the conditions that hold with those recorded for each target, and sends messages.

    Attributes:
        engine: the database.
        targets: the targets by name.
        remind: the time between two reminders.
        sender: this installation.
        report: called with each unexpected error of a target. The message then counts as refused.
    """

    engine: Engine
    targets: Mapping[str, Target]
    remind: timedelta
    sender: Sender
    report: Callable[[BaseException], object]

    def notify(self, active: list[Active]) -> None:
        """Send the messages that are due to all targets at the same time, so that a slow target delays no other.

        Raises:
            sqlalchemy.exc.DBAPIError: the database is unavailable.
        """
        with ThreadPoolExecutor(len(self.targets), "notify") as pool:
            sending = [pool.submit(self._notify_target, name, active) for name in self.targets]
        for each in sending:
            each.result()

    def _notify_target(self, name: str, active: list[Active]) -> None:
        active = [each for each in active if each.key != (OWN_FAILURE, name)]
        found, state = self._plan(name, active)
        if not found.changed and not _sends(found, state):
            return
        in_transaction(self.engine, _add, name)
        with TARGETS.lease(self.engine, name) as lease:
            if lease is None:
                return  # another process notifies this target
            try:
                self._notify_leased(lease, active)
            except LeaseLostError:
                log.warning("notify_lease_lost", target=name)

    def _notify_leased(self, lease: Lease, active: list[Active]) -> None:
        found, state = self._plan(lease.key, active)  # again, because another process may just have notified the target
        sends = _sends(found, state)
        before = found.when_attempted() if sends else found.recorded
        lease.in_transaction(self.engine, _record, lease.key, state.recorded, before)
        if not sends:
            return
        try:
            self.targets[lease.key](make_message(lease.key, found, self.sender))
        except Exception as error:  # noqa: BLE001 - whatever a target raises is recorded
            if not isinstance(error, NotifyError):
                self.report(error)
            problem = str(error) if isinstance(error, NotifyError) else unexpected(error)
            wait = backoff(state.attempts + 1, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
            lease.in_transaction(self.engine, _record_failure, lease.key, problem, wait)
            log.warning("notify_failed", target=lease.key, error=problem, again_in_seconds=wait)
        else:
            lease.in_transaction(self.engine, _record_success, lease.key, found)
            numbers = {"begun": len(found.begun), "continuing": len(found.continuing), "ended": len(found.ended)}
            log.info("notified", target=lease.key, **numbers)

    def _plan(self, name: str, active: list[Active]) -> tuple[Plan, _State]:
        with read_transaction(self.engine) as tx:
            state = _read(tx, name)
        return plan(state.recorded, active, state.now, self.remind), state


def _sends(found: Plan, state: _State) -> bool:
    """Return whether a message must be sent now. After failures it must, even if all conditions have ended."""
    return state.due and (found.has_news or state.attempts > 0)


def _read(tx: Connection, name: str) -> _State:
    notices = tx.execute(select(*COLUMNS).where(Notice.target == name))
    recorded = {each.key: each for each in (Recorded(*row) for row in notices)}
    columns = NotifyTarget.attempts, (NotifyTarget.due_at <= db_now()).label("due")
    target = tx.execute(select(*columns).where(NotifyTarget.name == name)).one_or_none()
    attempts, due = (target.attempts, bool(target.due)) if target else (0, True)
    return _State(recorded, attempts, due, tx.execute(select(db_now())).scalar_one())


def _add(tx: Connection, name: str) -> None:
    tx.execute(dialect_insert(tx, NotifyTarget).values(name=name).on_conflict_do_nothing())


def _record(tx: Connection, name: str, before: Mapping[Key, Recorded], after: Mapping[Key, Recorded]) -> None:
    """Replace the rows that differ. There are only a few, and the lease keeps other processes away."""
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key):
            row = (Notice.target == name, Notice.name == key[0], Notice.subject == key[1])
            tx.execute(delete(Notice).where(*row))
            if recorded := after.get(key):
                tx.execute(insert(Notice).values(target=name, **recorded._asdict()))


def _record_success(tx: Connection, name: str, found: Plan) -> None:
    _record(tx, name, found.when_attempted(), found.when_sent())
    tx.execute(update(NotifyTarget).where(NotifyTarget.name == name).values(attempts=0, error=None, due_at=db_now()))


def _record_failure(tx: Connection, name: str, problem: str, wait: float) -> None:
    values = {"attempts": NotifyTarget.attempts + 1, "error": problem, "due_at": db_now_plus(wait)}
    tx.execute(update(NotifyTarget).where(NotifyTarget.name == name).values(values))
