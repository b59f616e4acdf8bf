"""Confirmed reads: compare and set. Note the row's revision, GET the object by id, apply only if it is still the same.

What is in doubt waits in the table `reads`: asked for by an event (an id under a resync's tombstone, a parent that
stays missing, a role that was deleted) or by a resync (whatever a listing cannot settle).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from redis.exceptions import RedisError
from rq.timeouts import JobTimeoutException
from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, delete, or_, select, update

from models.database import in_transaction, read_transaction
from models.outcomes import Finding
from models.tables import Cause, DeletedBy, Mirror, Read
from models.types import JsonObject, db_now, db_now_plus
from worker.backoff import backoff
from worker.decision.decide import State, confirm
from worker.errors import InvalidApiKeyError, PayloadError, WorkOSUnavailableError, unexpected
from worker.kinds import KINDS, Kind, RoleMap, read_object
from worker.mirror.apply import change, lock_rows, note_changes, save_rows
from worker.mirror.read_requests import PARENT_MISSING
from worker.workos_api.client import ReadResult, WorkOSClient

log = structlog.get_logger()

MAX_RACES = 10
"""An object that changes between read and write so often is left for later."""
FIRST_BACKOFF_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 3600.0
STEP = 100


@dataclass(frozen=True, slots=True)
class Result:
    """What a confirmed read found, and what it changed: `before` is None for an object never seen."""

    finding: Finding
    before: State | None
    after: State | None


def fetch(workos: WorkOSClient, kind: Kind, id: str) -> ReadResult:
    """Read one object from WorkOS by its key in the mirror."""
    found = workos.read(kind.read_path(id), kind.object, kind.id_field)
    if found.item is None:
        return found
    try:
        return found._replace(item=kind.from_read(id, found.item))
    except PayloadError as error:
        raise WorkOSUnavailableError(f"{kind} {id}: WorkOS answered another {kind}") from error


def confirmed_read(
    engine: Engine,
    workos: WorkOSClient,
    kind: Kind,
    id: str,
    cause: tuple[Cause, str],
    then: Callable[[Connection, Result], None],
    *,
    dry_run: bool = False,
) -> Result:
    """Read one object until no one wrote it between the read and the write, apply what WorkOS shows, return it.

    Args:
        engine: the database.
        workos: WorkOS.
        kind: what to read.
        id: which.
        cause: `cause` and `cause_id` of the row in `changes`.
        then: called in the transaction with what was found.
        dry_run: the mirror is not to be changed.

    Raises:
        WorkOSUnavailableError: WorkOS did not answer, or the object changes too fast.
        InvalidApiKeyError: WorkOS refuses the key.
        PayloadError: WorkOS shows an object that cannot be used.
    """
    for _ in range(MAX_RACES):
        revision = _revision(engine, kind, id)
        found = fetch(workos, kind, id)
        result = in_transaction(
            engine,
            _set,
            kind,
            id,
            revision,
            found,
            cause,
            then,
            dry_run=dry_run,
        )
        if result is not None:
            return result
    raise WorkOSUnavailableError(f"{kind} {id} changes faster than it can be read")


def _revision(engine: Engine, kind: Kind, id: str) -> int:
    table = kind.table
    with read_transaction(engine) as tx:
        return tx.execute(select(table.revision).where(table.id == id)).scalar_one_or_none() or 0


def _set(
    tx: Connection,
    kind: Kind,
    id: str,
    revision: int,
    found: ReadResult,
    cause: tuple[Cause, str],
    then: Callable[[Connection, Result], None],
    *,
    dry_run: bool,
) -> Result | None:
    roles = tx.execute(select(Mirror.role_map).with_for_update(read=True)).scalar_one()
    read = None if found.item is None else _state(kind, id, found.item, found.read_at, roles)
    known = tx.execute(select(kind.table.id).where(kind.table.id == id)).one_or_none() is not None
    if read is None and not known:
        result = Result(Finding.NONE, None, None)  # nothing here and nothing there
        then(tx, result)
        return result
    before = lock_rows(tx, kind, [id])[id]
    now = tx.execute(select(kind.table.revision).where(kind.table.id == id)).scalar_one()
    if now != revision:
        if now == 0:
            tx.execute(delete(kind.table).where(kind.table.id == id))
        return None
    after, finding = confirm(before, read, terminal=kind.delete_is_final)
    result = Result(finding, before, after)
    then(tx, result)
    if not dry_run and after is not None and after is not before:
        save_rows(tx, kind, {id: after})
        if finding not in (Finding.NONE, Finding.ANOMALY):
            note_changes(tx, [change(kind, id, before, after, *cause)])
    elif before is None:
        tx.execute(delete(kind.table).where(kind.table.id == id))
    return result


def _state(kind: Kind, id: str, item: JsonObject, read_at: datetime, roles: RoleMap) -> State:
    snapshot = read_object(kind, item, read_at, roles)
    if snapshot.id != id:
        raise PayloadError("id", "is not the one that was asked for")
    return snapshot.state


def work_due(engine: Engine, workos: WorkOSClient, stopping: Callable[[], bool]) -> int:
    """Read what events asked for and is due; return how many were settled.

    What cannot be read now, whatever the reason, is tried again later; the others go on.

    Raises:
        InvalidApiKeyError: WorkOS refuses the key.
        redis.exceptions.RedisError: Redis, which keeps the rate limits, is away.
        sqlalchemy.exc.DBAPIError: the database is away.
    """
    settled = 0
    while not stopping() and (wanted := _due(engine)):
        for read in wanted:
            if stopping():
                break
            settled += _read(engine, workos, read)
    return settled


def _due(engine: Engine) -> Sequence[RowMapping]:
    due = select(Read.__table__).where(Read.run_id == "", Read.due_at <= db_now())
    with read_transaction(engine) as tx:
        return tx.execute(due.order_by(Read.due_at).limit(STEP)).mappings().all()


def _read(engine: Engine, workos: WorkOSClient, read: RowMapping) -> bool:
    kind, id, reason = KINDS[read["kind"]], read["object_id"], read["reason"]
    # Of this reason: an event may ask for another one meanwhile.
    here = (Read.run_id == "", Read.kind == kind.name, Read.object_id == id, Read.reason == reason)

    def done(tx: Connection, _result: Result | None = None) -> None:
        tx.execute(delete(Read).where(*here))

    try:
        if reason == PARENT_MISSING and _arrived(engine, kind, id):
            in_transaction(engine, done)
            return True
        result = confirmed_read(engine, workos, kind, id, (Cause.EVENT, read["event_id"] or reason), done)
    except (JobTimeoutException, RedisError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever one object meets, the others go on
        if isinstance(error, InvalidApiKeyError):
            workos.now()  # raises too, unless it is only this kind that the key may not see
        known = isinstance(error, WorkOSUnavailableError | PayloadError | InvalidApiKeyError)
        problem = str(error) if known else unexpected(error)
        wait = in_transaction(engine, _later, here, problem)
        log.warning("read_failed", kind=kind.name, id=id, problem=problem, again_in_seconds=wait)
        return False
    log.info("read", kind=kind.name, id=id, reason=reason, found=result.finding)
    return True


def _arrived(engine: Engine, kind: Kind, id: str) -> bool:
    table = kind.table
    settled = or_(table.deleted_by.is_(None), table.deleted_by != DeletedBy.RESYNC)
    with read_transaction(engine) as tx:
        return tx.execute(select(table.id).where(table.id == id, settled)).one_or_none() is not None


def _later(tx: Connection, here: tuple[ColumnElement[bool], ...], problem: str) -> float:
    """Count an attempt that failed and put the next one off; return by how many seconds."""
    attempts = tx.execute(select(Read.attempts).where(*here)).scalar_one_or_none() or 0
    wait = backoff(attempts + 1, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
    tx.execute(update(Read).where(*here).values(attempts=attempts + 1, error=problem, due_at=db_now_plus(wait)))
    return wait
