"""The lane that repairs: resyncs, catch-ups and confirmed reads, one after the other, under leases; and retention."""

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from redis import Redis
from sqlalchemy import Connection, Engine, exists, select, update

from models.database import reading, write
from models.tables import TABLES, Kind, Mirror, Organization, Read, Run, RunStatus, Task
from models.types import db_in, db_now
from worker.decision.handlers import SUBSCRIBED
from worker.directory.bucket import Buckets
from worker.directory.client import Directory, NotThereError, UnreadableError, open_directory
from worker.errors import ConfigurationError
from worker.inbox.replay import replay
from worker.joining import admission
from worker.mirror.retention import retain
from worker.processes.clock import claim
from worker.processes.counters import Counters
from worker.processes.doorbell import Doorbell
from worker.repair import reads, runs
from worker.repair.catch_up import catch_up, settle
from worker.repair.resync import Resync, begin
from worker.repair.runs import BusyError, Lease, LeaseLostError, create, finish
from worker.settings import Settings

log = structlog.get_logger()

MARGIN = timedelta(minutes=5)
"""The first catch-up begins so long before the first resync: an event may be older than when it can be read."""
PAUSE = 60.0
"""Seconds between a first resync that failed and the next."""


def connect(settings: Settings, redis: Redis, counters: Counters) -> Directory:
    """Return WorkOS as the settings name it; they hold an API key and a client id. Its calls are counted."""
    if settings.workos_api_key is None or settings.workos_client_id is None:
        raise ConfigurationError("WORKOS_API_KEY and WORKOS_CLIENT_ID are not set")
    buckets = Buckets(redis, settings.workos_rate_share)
    key, client_id = settings.workos_api_key.get_secret_value(), settings.workos_client_id
    return open_directory(key, client_id, settings.workos_base_url, buckets, counters.add)


def bind(engine: Engine, directory: Directory, settings: Settings) -> None:
    """Bind the database to its WorkOS environment on the first start; refuse another one's later (DESIGN, rule 10).

    Raises:
        ConfigurationError, RefusedKeyError, UnreadableError: as `require_same_environment`.
    """
    require_same_environment(engine, directory, settings)
    with reading(engine) as tx:
        bound, began = tx.execute(select(Mirror.client_id, Mirror.backfill_from)).one()
    if began is not None:
        _require_same(bound, settings.workos_client_id or "")  # another process may have bound it since
        return
    client_id, started = settings.workos_client_id or "", directory.now() - MARGIN
    write(engine, lambda tx: _bind(tx, client_id, started))


def require_same_environment(engine: Engine, directory: Directory, settings: Settings) -> None:
    """Check that the settings name the environment that this database mirrors, if it mirrors one.

    Raises:
        ConfigurationError: the client id is another's, or the key sees nothing that is known here.
        RefusedKeyError: WorkOS refuses the key.
        UnreadableError: WorkOS does not answer.
    """
    with reading(engine) as tx:
        bound, known = tx.execute(select(Mirror.client_id, Mirror.known_organizations)).one()
    _require_same(bound, settings.workos_client_id or "")
    if known and not _sees(engine, directory, known):
        raise ConfigurationError(
            "WORKOS_API_KEY: it sees none of the organizations known here; is it another environment's?"
        )


def _sees(engine: Engine, directory: Directory, known: list[str]) -> bool:
    """Whether a key sees anything of this mirror: ids are unique over all environments."""
    with reading(engine) as tx:
        # Those that are gone are 404 in every environment.
        living = select(Organization.id).where(Organization.id.in_(known), Organization.deleted_by.is_(None))
        ids = sorted(tx.execute(living).scalars())
    if not ids or any(directory.organization(id).item is not None for id in ids):
        return True
    # All of them deleted, and no event told? Then others, or their people, are still there.
    for kind, list_page in ((Kind.ORGANIZATION, directory.organizations), (Kind.USER, directory.users)):
        listed = [item.get("id") for item in list_page(None).items if isinstance(item, dict)]
        with reading(engine) as tx:
            if tx.execute(select(TABLES[kind].id).where(TABLES[kind].id.in_(listed)).limit(1)).one_or_none():
                return True
    return False


def _require_same(bound: str | None, client_id: str) -> None:
    if bound not in (None, client_id):
        raise ConfigurationError(
            f"WORKOS_CLIENT_ID: this database mirrors {bound}; use another database for {client_id}"
        )


def _bind(tx: Connection, client_id: str, started: datetime) -> None:
    """On an empty mirror "nobody has access" would be a lie: note the time from which to catch up after the resync."""
    mirror = tx.execute(select(Mirror.__table__).with_for_update()).one()
    _require_same(mirror.client_id, client_id)
    if mirror.backfill_from is None:
        first = {"client_id": client_id, "backfill_from": started, "cursor_at": started}
        tx.execute(update(Mirror).values(event_types=SUBSCRIBED, **first))


def _begin_due(tx: Connection) -> None:
    """Begin the resync that a first start, or a release that acts on further event types, asks for."""
    mirror = tx.execute(select(Mirror.__table__).with_for_update()).one()
    if mirror.backfill_from is None:
        return
    if mirror.last_resync_at is None:
        failed = (Run.task == Task.RESYNC, Run.status == RunStatus.FAILED, Run.finished_at > db_in(-PAUSE))
        if not tx.execute(select(exists().where(*failed))).scalar_one():
            begin_unless_busy(tx, "first start")
    elif (new := set(SUBSCRIBED).difference(mirror.event_types or ())) and begin_unless_busy(tx, "new release"):
        # Events of these types were ignored until now: what they told is found by listing.
        log.info("new_event_types", types=sorted(new))
        tx.execute(update(Mirror).values(event_types=SUBSCRIBED))


def begin_unless_busy(tx: Connection, requested_by: str) -> bool:
    """Begin a full resync unless one is under way; return whether it was begun."""
    try:
        begin(tx, requested_by)
    except BusyError:
        return False
    return True


def schedule(engine: Engine, settings: Settings) -> None:
    """Create the runs that are due. Tick and run are one transaction: two clocks, or a missed tick, do no harm."""
    duties = {Task.RETENTION: settings.retention_seconds}
    if settings.repairs:
        write(engine, _begin_due)
        duties |= {Task.RESYNC: settings.resync_seconds, Task.CATCH_UP: settings.catch_up_seconds}
    for task, every in duties.items():
        try:
            write(engine, lambda tx: _schedule(tx, task, every))  # noqa: B023 - called now
        except BusyError:
            log.info("still_under_way", task=task)


def _schedule(tx: Connection, task: Task, every_seconds: float) -> None:
    if task is Task.RESYNC:
        # One that an operator or the first start asked for counts too.
        recent = select(Mirror.id).where(Mirror.last_resync_at > db_in(-every_seconds))
        if tx.execute(recent).one_or_none() is None and claim(tx, task, every_seconds):
            begin(tx, "clock")
    elif claim(tx, task, every_seconds):
        create(tx, task, "clock")


def watch(engine: Engine, bell: Doorbell) -> None:
    """Ring for runs and reads that nobody works on, and note how far the mirror is right by now."""
    settle(engine)
    if needs_repair(engine) and not bell.waiting():
        bell.ring()


def needs_repair(engine: Engine) -> bool:
    """Whether a run waits for a worker, or a read is due."""
    unheld = exists().where(Run.status == RunStatus.RUNNING, Run.leased_until.is_(None) | (Run.leased_until < db_now()))
    due = exists().where(Read.run_id == "", Read.due_at <= db_now())
    with reading(engine) as tx:
        return bool(tx.execute(select(unheld | due)).scalar_one())


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
    write(engine, _begin_due)
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
