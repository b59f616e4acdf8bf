"""The lane that repairs: resyncs, catch-ups and confirmed reads, one after the other, under leases."""

from collections.abc import Callable
from datetime import timedelta

import structlog
from redis import Redis
from sqlalchemy import Connection, Engine, exists, select, update

from models.database import reading, write
from models.tables import Event, EventStatus, Mirror, Read, Run, RunStatus, Task
from models.types import db_now
from worker import reads, runs
from worker.bucket import Buckets
from worker.catch_up import catch_up
from worker.clock import claim
from worker.directory import Directory, NotThereError, UnreadableError, open_directory
from worker.doorbell import Doorbell
from worker.errors import ConfigurationError
from worker.resync import Resync, begin
from worker.retention import retain
from worker.runs import BusyError, Lease, LeaseLostError, create, finish
from worker.settings import Settings

log = structlog.get_logger()

MARGIN = timedelta(minutes=5)
"""The first catch-up begins so long before the first resync: an event may be older than when it can be read."""


def connect(settings: Settings, redis: Redis) -> Directory:
    """Return WorkOS as the settings name it; they hold an API key and a client id."""
    if settings.workos_api_key is None or settings.workos_client_id is None:
        raise ConfigurationError("WORKOS_API_KEY and WORKOS_CLIENT_ID are not set")
    buckets = Buckets(redis, settings.workos_rate_share)
    key, client_id = settings.workos_api_key.get_secret_value(), settings.workos_client_id
    return open_directory(key, client_id, settings.workos_base_url, buckets)


def bind(engine: Engine, directory: Directory, settings: Settings) -> None:
    """Bind the database to its WorkOS environment on the first start; refuse another one's later (DESIGN, rule 10).

    Raises:
        ConfigurationError: the client id is another's, or the key sees none of the organizations known here.
        RefusedKeyError: WorkOS refuses the key.
        UnreadableError: WorkOS does not answer.
    """
    client_id = settings.workos_client_id or ""
    with reading(engine) as tx:
        bound, known = tx.execute(select(Mirror.client_id, Mirror.known_organizations)).one()
    if bound not in (None, client_id):
        raise ConfigurationError(
            f"WORKOS_CLIENT_ID: this database mirrors {bound}; use another database for {client_id}"
        )
    if known and all(directory.organization(id).item is None for id in known):
        raise ConfigurationError(
            "WORKOS_API_KEY: it sees none of the organizations known here; is it another environment's?"
        )
    started = directory.now() - MARGIN
    write(engine, lambda tx: _first_start(tx, client_id, started))


def _first_start(tx: Connection, client_id: str, started: object) -> None:
    """On an empty mirror "nobody has access" would be a lie: note the time, resync, then catch up from that time."""
    first = tx.execute(select(Mirror.backfill_from).with_for_update()).scalar_one() is None
    tx.execute(update(Mirror).values(client_id=client_id))
    if first:
        tx.execute(update(Mirror).values(backfill_from=started, cursor_at=started))
        begin(tx, "first start")


def schedule(engine: Engine, settings: Settings) -> None:
    """Create the runs that are due. Tick and run are one transaction: two clocks, or a missed tick, do no harm."""
    duties = {
        Task.RESYNC: settings.resync_seconds,
        Task.CATCH_UP: settings.catch_up_seconds,
        Task.RETENTION: settings.retention_seconds,
    }
    for task, every in duties.items():
        try:
            write(engine, lambda tx: _schedule(tx, task, every))  # noqa: B023 - called now
        except BusyError:
            log.info("still_under_way", task=task)


def _schedule(tx: Connection, task: Task, every_seconds: float) -> None:
    if claim(tx, task, every_seconds):
        begin(tx, "clock") if task is Task.RESYNC else create(tx, task, "clock")


def watch(engine: Engine, bell: Doorbell) -> None:
    """Ring for runs and reads that nobody works on."""
    if needs_repair(engine) and not bell.waiting():
        bell.ring()


def needs_repair(engine: Engine) -> bool:
    """Whether a run waits for a worker, or a read is due."""
    unheld = exists().where(Run.status == RunStatus.RUNNING, Run.leased_until.is_(None) | (Run.leased_until < db_now()))
    due = exists().where(Read.run_id == "", Read.due_at <= db_now())
    with reading(engine) as tx:
        return bool(tx.execute(select(unheld | due)).scalar_one())


def repair(
    engine: Engine, directory: Directory, settings: Settings, bell: Doorbell, stopping: Callable[[], bool]
) -> None:
    """Work on every run that nobody holds, then on the reads that are due."""
    for run_id in runs.free(engine):
        if not stopping():
            work_on(engine, directory, settings, bell, run_id, stopping)
    reads.work_due(engine, directory, stopping)


def work_on(
    engine: Engine,
    directory: Directory,
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
    engine: Engine, directory: Directory, settings: Settings, bell: Doorbell, held: Lease, stopping: Callable[[], bool]
) -> bool:
    with reading(engine) as tx:
        task = tx.execute(select(Run.task).where(Run.id == held.run_id)).scalar_one()
    if task == Task.RESYNC:
        over = Resync(engine, directory, held, stopping).work()
        if over:
            write(engine, _catch_up_if_first)
        return over
    if task == Task.RETENTION:
        retain(engine, settings.periods(), stopping)
        write(engine, lambda tx: finish(tx, held, RunStatus.DONE))
        return True
    try:
        catch_up(engine, directory, held, timedelta(seconds=settings.catch_up_lag_seconds))
    except (UnreadableError, NotThereError) as error:
        problem = str(error)
        write(engine, lambda tx: finish(tx, held, RunStatus.FAILED, problem))
        return True
    finally:
        bell.ring()
    write(engine, lambda tx: _caught_up(tx, held))
    return True


def _catch_up_if_first(tx: Connection) -> None:
    if tx.execute(select(Mirror.backfilled_at)).scalar_one() is None:
        try:
            create(tx, Task.CATCH_UP, "first start")
        except BusyError:
            log.info("catch_up_under_way")


def _caught_up(tx: Connection, held: Lease) -> None:
    """End a catch-up; the first that began after the first resync, and finds all applied, ends the backfill."""
    began = tx.execute(select(Run.created_at).where(Run.id == held.run_id)).scalar_one()
    waiting = exists().where(Event.status == EventStatus.PENDING)
    tx.execute(
        update(Mirror)
        .where(Mirror.backfilled_at.is_(None), Mirror.last_resync_at <= began, ~waiting)
        .values(backfilled_at=db_now())
    )
    finish(tx, held, RunStatus.DONE)
