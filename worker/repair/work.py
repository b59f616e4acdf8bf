"""The lane that repairs: resyncs, catch-ups and confirmed reads, one after the other, under leases; and retention."""

from collections.abc import Callable
from datetime import timedelta

import structlog
from sqlalchemy import Connection, Engine, select

from models.database import reading, write
from models.tables import Mirror, Run, RunStatus, Task
from worker.directory.client import Directory, NotThereError, UnreadableError
from worker.mirror import admission
from worker.mirror.retention import retain
from worker.repair import reads, runs
from worker.repair.catch_up import catch_up
from worker.repair.environment import bind
from worker.repair.replay import replay
from worker.repair.resync import Resync
from worker.repair.runs import BusyError, Lease, LeaseLostError, create, finish
from worker.repair.schedule import begin_due, begin_unless_busy
from worker.settings import Settings
from worker.signals.doorbell import Doorbell

log = structlog.get_logger()


def repair(
    engine: Engine,
    directory: Directory | None,
    settings: Settings,
    bell: Doorbell,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Work on every run that nobody holds, then on the reads that are due.

    Args:
        engine: the database.
        directory: WorkOS; None: only what does without it is done.
        settings: as loaded.
        bell: rung when a catch-up has filled the inbox.
        stopping: says whether to leave off.

    Raises:
        ConfigurationError: WorkOS is another environment, or refuses the key.
        UnreadableError: WorkOS does not answer.
    """
    # First, so that it does not wait for WorkOS.
    for run_id in runs.free(engine, Task.RETENTION, Task.REPLAY):
        if not stopping():
            work_on(engine, directory, settings, bell, run_id, stopping)
    if directory is None:
        return
    bind(engine, directory, settings)
    write(engine, begin_due)
    for run_id in runs.free(engine):
        if not stopping():
            work_on(engine, directory, settings, bell, run_id, stopping)
    reads.work_due(engine, directory, stopping)


def work_on(
    engine: Engine,
    directory: Directory | None,
    settings: Settings,
    bell: Doorbell,
    run_id: str,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Work on one run; return whether it is over. False: another has it, or it is left for later."""
    with runs.lease(engine, run_id) as held:
        if held is None:
            return False
        try:
            return _work(engine, directory, settings, bell, held, stopping)
        except LeaseLostError:
            log.warning("lease_lost", run=run_id)
            return False


def _work(
    engine: Engine,
    directory: Directory | None,
    settings: Settings,
    bell: Doorbell,
    held: Lease,
    stopping: Callable[[], bool],
) -> bool:
    with reading(engine) as tx:
        task = tx.execute(select(Run.task).where(Run.id == held.run_id)).scalar_one()
    if task == Task.RETENTION:
        return _retain(engine, settings, held, stopping)
    if task == Task.REPLAY:
        return replay(engine, held, bell, settings.replay_per_second, stopping)
    if directory is None:
        return False
    if task == Task.CATCH_UP:
        return _catch_up(engine, directory, settings, bell, held)
    over = Resync(engine, directory, held, stopping).work()
    if over:
        admission.take_stock(engine)
        write(engine, _catch_up_if_first)
    return over


def _retain(engine: Engine, settings: Settings, held: Lease, stopping: Callable[[], bool]) -> bool:
    retain(engine, settings.periods(), stopping)
    if stopping():
        return False
    write(engine, lambda tx: finish(tx, held, RunStatus.DONE))
    return True


def _catch_up(engine: Engine, directory: Directory, settings: Settings, bell: Doorbell, held: Lease) -> bool:
    try:
        report = catch_up(engine, directory, held, timedelta(seconds=settings.catch_up_lag_seconds))
    except (UnreadableError, NotThereError) as error:
        problem = str(error)
        log.warning("catch_up_failed", run=held.run_id, error=problem)
        write(engine, lambda tx: finish(tx, held, RunStatus.FAILED, problem))
        return True
    finally:
        bell.ring()
    if report.missed:
        write(engine, lambda tx: begin_unless_busy(tx, "missed events"))
    write(engine, lambda tx: finish(tx, held, RunStatus.DONE))
    return True


def _catch_up_if_first(tx: Connection) -> None:
    first = select(Mirror.id).where(Mirror.backfilled_at.is_(None), Mirror.last_resync_at.is_not(None))
    if tx.execute(first).one_or_none() is not None:
        try:
            create(tx, Task.CATCH_UP, "first start")
        except BusyError:
            log.info("catch_up_under_way")
