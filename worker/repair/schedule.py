"""The schedule: creates due runs and the first resync, and wakes workers for runs and reads that wait."""

from contextlib import suppress

import structlog
from sqlalchemy import Connection, Engine, exists, or_, select, update

from models.bulk import dialect_insert
from models.database import in_transaction, read_transaction
from models.tables import FailedEffect, MirrorState, Read, Run, RunStatus, Task, Tick
from models.types import db_now, db_now_plus
from worker.errors import BusyError
from worker.kinds import SUBSCRIBED
from worker.queue.doorbell import Doorbell
from worker.repair.catch_up import update_complete_to
from worker.repair.new_types import add_new_types
from worker.repair.resync.resync import create_resync
from worker.runs import RUNS, create
from worker.settings import Settings

log = structlog.get_logger()

CLOCK_TICK = "clock"
"""The tick that shows that the clock runs."""
WEB_TICK = "web"
"""The tick that shows that `web` runs, so that webhooks are expected."""
WEB_TICK_SECONDS = 300.0
"""Interval at which `web` takes it."""
RETRY_SECONDS = 60.0
"""Pause after a failed first resync, and between two resyncs that end uncertain access."""


def take_tick(tx: Connection, name: str, every_seconds: float) -> bool:
    """Take a task's tick if it is due by the database's clock; return False if it is not, or another clock took it."""
    first = dialect_insert(tx, Tick).values(name=name, at=db_now()).on_conflict_do_nothing().returning(Tick.name)
    if tx.execute(first).one_or_none() is not None:
        return True
    due = (Tick.name == name) & (Tick.at <= db_now_plus(-every_seconds))
    moved = update(Tick).where(due).values(at=db_now()).returning(Tick.name)
    return tx.execute(moved).one_or_none() is not None


def create_needed_resync(tx: Connection) -> None:
    """Create the resync that is needed on the first start, or after an upgrade that mirrors more event types."""
    mirror = tx.execute(select(MirrorState.__table__).with_for_update()).one()
    if mirror.backfill_from is None:
        return
    if mirror.last_resync_at is None:
        failed = (Run.task == Task.RESYNC) & (Run.status == RunStatus.FAILED)
        recently = Run.finished_at > db_now_plus(-RETRY_SECONDS)
        if not tx.execute(select(exists().where(failed, recently))).scalar_one():
            create_resync_unless_busy(tx, "first start")
    elif (new := set(SUBSCRIBED).difference(mirror.event_types or ())) and create_resync_unless_busy(tx, "new release"):
        # Events of these types were ignored until now. The resync finds what they changed; catch-up reads them.
        log.info("new_event_types", types=sorted(new))
        tx.execute(update(MirrorState).values(event_types=SUBSCRIBED))
        add_new_types(tx, new)
        with suppress(BusyError):  # a catch-up is running, and reads them
            create(tx, Task.CATCH_UP, "new release")


def create_resync_for_uncertainty(tx: Connection) -> None:
    """Create a resync if an event about an unknown object failed, unless a resync has begun since.

    The resync ends the uncertainty of all events that failed before it. If it does not, it is not repeated.
    """
    compared = or_(Run.organization_id.is_(None), Run.organization_id == FailedEffect.organization_id)
    later = or_(Run.created_at > FailedEffect.since, Run.created_at > db_now_plus(-RETRY_SECONDS))
    resyncs = (Run.task == Task.RESYNC, ~Run.dry_run, Run.approves.is_(None))
    waiting = select(FailedEffect.organization_id).where(
        FailedEffect.object_id.is_(None), ~exists().where(*resyncs, compared, later)
    )
    organization_id = tx.execute(waiting.order_by(FailedEffect.organization_id).limit(1)).scalar_one_or_none()
    if organization_id is not None:
        with suppress(BusyError):
            create_resync(tx, "uncertain access", organization_id=organization_id or None)


def create_resync_unless_busy(tx: Connection, requested_by: str) -> bool:
    """Create a full resync unless one is running; return whether it was created."""
    try:
        create_resync(tx, requested_by)
    except BusyError:
        return False
    return True


def schedule(engine: Engine, settings: Settings) -> None:
    """Create the runs that are due.

    Each tick is taken in the transaction that creates its run, so that a second clock or a crash does no harm.
    """
    intervals = {Task.RETENTION: settings.retention_seconds}
    if settings.repairs:
        in_transaction(engine, create_needed_resync)
        in_transaction(engine, create_resync_for_uncertainty)
        intervals |= {Task.RESYNC: settings.resync_seconds, Task.CATCH_UP: settings.catch_up_seconds}
    for task, every in intervals.items():
        with suppress(BusyError):  # it is running
            in_transaction(engine, _schedule, task, every)


def _schedule(tx: Connection, task: Task, every_seconds: float) -> None:
    if task is Task.RESYNC:
        # A resync requested by an operator or by the first start counts too.
        recent = select(MirrorState.id).where(MirrorState.last_resync_at > db_now_plus(-every_seconds))
        if tx.execute(recent).one_or_none() is None and take_tick(tx, task, every_seconds):
            create_resync(tx, "clock")
    elif take_tick(tx, task, every_seconds):
        create(tx, task, "clock")


def watch(engine: Engine, bell: Doorbell) -> None:
    """Wake a worker if a run or read waits for one, and update `complete_to`."""
    update_complete_to(engine)
    if needs_repair(engine) and not bell.queued_jobs():
        bell.ring()


def needs_repair(engine: Engine) -> bool:
    """Return whether a run waits for a worker, or a read requested by an event is due."""
    unheld = exists().where(RUNS.is_free())
    due = exists().where(Read.run_id == "", Read.due_at <= db_now())
    with read_transaction(engine) as tx:
        return bool(tx.execute(select(unheld | due)).scalar_one())
