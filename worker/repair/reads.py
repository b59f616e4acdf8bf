"""Confirmed reads: read one object from WorkOS by id, and write it only if the mirror's row has not changed meanwhile.

The table `reads` holds the objects to read. A resync requests reads of objects that a listing cannot decide, and makes
them itself. Events request others (`worker.mirror.read_requests`); `work_due` makes those.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import structlog
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, delete, or_, select, update

from models.database import in_transaction, is_transient, read_transaction
from models.outcomes import Finding
from models.tables import Cause, DeletedBy, Read
from models.types import db_now, db_now_plus
from worker.backoff import backoff
from worker.decision.decide import State, confirm
from worker.errors import InvalidApiKeyError, PayloadError, WorkOSError, reason_of
from worker.kinds import KINDS, Kind, read_object
from worker.mirror import uncertainty
from worker.mirror.apply import (
    found_change,
    insert_and_lock_rows,
    note_changes,
    save_rows,
    verified_times,
    without_erased,
)
from worker.mirror.change_rows import CausedBy
from worker.mirror.read_requests import PARENT_MISSING
from worker.mirror.role_map import lock_role_map
from worker.redis_client import INTERRUPTS
from worker.workos_api.client import ReadResult, WorkOSClient

log = structlog.get_logger()

MAX_RACES = 10
"""Attempts to read an object whose row keeps changing, before it is retried later."""
FIRST_BACKOFF_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 3600.0


class Began(NamedTuple):
    """The revision of the mirror's row (0: none), and the database's time, before a read."""

    revision: int
    at: datetime


class Result(NamedTuple):
    """The finding of a confirmed read, and the states before and after it. None: an object never seen."""

    finding: Finding
    before: State | None
    after: State | None


Then = Callable[[Connection, Result], None]
"""Called with the result of a read, in the transaction that writes it."""


def fetch(workos: WorkOSClient, kind: Kind, id: str) -> ReadResult:
    """Read one object from WorkOS by its key in the mirror."""
    found = workos.read(kind.read_path(id), kind.object, kind.id_field)
    if found.item is None:
        return found
    try:
        return found._replace(item=kind.from_read(id, found.item))
    except PayloadError as error:
        raise WorkOSError(f"{kind} {id}: WorkOS returned another {kind}") from error


def confirmed_read(
    engine: Engine,
    workos: WorkOSClient,
    kind: Kind,
    id: str,
    cause: CausedBy,
    then: Then = lambda _tx, _result: None,
    *,
    dry_run: bool = False,
) -> Result:
    """Read the object with the key `id` and write it to the mirror. If its row changed during the read, read again.

    `then` is called in the transaction that writes the object and its row of `changes`. A dry run does not change the
    mirror.

    Raises:
        WorkOSError: WorkOS did not answer, or the object changes faster than it can be read.
        InvalidApiKeyError: WorkOS refuses the API key.
        PayloadError: the object that WorkOS returned is invalid.
    """
    for _ in range(MAX_RACES):
        with read_transaction(engine) as tx:
            revision = tx.execute(select(kind.table.revision).where(kind.table.id == id)).scalar_one_or_none() or 0
            began = Began(revision, tx.execute(select(db_now())).scalar_one())
        found = fetch(workos, kind, id)
        result = in_transaction(engine, _write, kind, id, began, found, cause, then, dry_run=dry_run)
        if result is not None:
            return result
    raise WorkOSError(f"{kind} {id} changes faster than it can be read")


def _write(
    tx: Connection, kind: Kind, id: str, began: Began, found: ReadResult, cause: CausedBy, then: Then, *, dry_run: bool
) -> Result | None:
    """Write what was read; return None if the row has changed since the read began."""
    roles = lock_role_map(tx)
    before = read = None
    if found.item is not None:
        snapshot = read_object(kind, found.item, found.read_at, roles)
        if snapshot.id != id:
            raise PayloadError("id", "is not the requested id")
        read = snapshot.state
    if read is not None or tx.execute(select(kind.table.id).where(kind.table.id == id)).one_or_none() is not None:
        before = insert_and_lock_rows(tx, kind, [id])[id]
        if tx.execute(select(kind.table.revision).where(kind.table.id == id)).scalar_one() != began.revision:
            return None
        read = read and without_erased(kind, before, read)
    after, finding = confirm(before, read, delete_is_final=kind.delete_is_final)
    result = Result(finding, before, after)
    then(tx, result)
    if not dry_run:
        uncertainty.clear_after_read(tx, kind, id, began.at)
    if not dry_run and after is not None and after is not before:
        is_change = finding not in (Finding.EQUAL, Finding.ANOMALY)
        verified = verified_times(tx, kind, [id] if is_change else [])
        save_rows(tx, kind, {id: after})
        if is_change:
            note_changes(tx, [found_change(kind, id, before, after, *cause, found.read_at, verified.get(id))])
    elif before is None:
        tx.execute(delete(kind.table).where(kind.table.id == id))
    return result


def work_due(engine: Engine, workos: WorkOSClient, stopping: Callable[[], bool], *which: ColumnElement[bool]) -> int:
    """Make the due reads that events requested, of those that meet `which`; return how many succeeded.

    A read that fails because of its object is retried later, and the others continue. An outage is raised.

    Raises:
        InvalidApiKeyError: WorkOS refuses the API key.
        redis.exceptions.RedisError: the Redis of the rate limits is unavailable.
        sqlalchemy.exc.DBAPIError: the database is unavailable.
    """
    done = 0
    while not stopping() and (read := _next_due(engine, *which)):
        done += _read(engine, workos, read)
    return done


def _next_due(engine: Engine, *which: ColumnElement[bool]) -> RowMapping | None:
    # A later release may have requested reads of kinds that this one does not know.
    due = select(Read.__table__).where(Read.run_id == "", Read.due_at <= db_now(), Read.kind.in_(KINDS), *which)
    with read_transaction(engine) as tx:
        return tx.execute(due.order_by(Read.due_at).limit(1)).mappings().first()


def _read(engine: Engine, workos: WorkOSClient, read: RowMapping) -> bool:
    kind, id, reason = KINDS[read["kind"]], read["object_id"], read["reason"]
    # Not a request for the same object that another event, or another reason, makes meanwhile.
    request = (Read.run_id == "") & (Read.kind == kind.name) & (Read.object_id == id) & (Read.reason == reason)
    request &= Read.event_id.is_not_distinct_from(read["event_id"])

    def remove_request(tx: Connection, _result: Result | None = None) -> None:
        tx.execute(delete(Read).where(request))

    try:
        if reason == PARENT_MISSING and has_arrived(engine, kind, id):
            in_transaction(engine, remove_request)
            return True
        result = confirmed_read(engine, workos, kind, id, (Cause.EVENT, read["event_id"] or reason), remove_request)
    except Exception as error:  # noqa: BLE001 - `why_failed` raises what is not about the object
        problem = why_failed(workos, error)
        wait = in_transaction(engine, _retry_later, request, problem)
        log.warning("read_failed", kind=kind.name, id=id, problem=problem, again_in_seconds=wait)
        return False
    log.info("read", kind=kind.name, id=id, reason=reason, found=result.finding)
    return True


def why_failed(workos: WorkOSClient, error: Exception) -> str:
    """Return why work on an object failed; raise the error instead if the object is not the cause."""
    if isinstance(error, (*INTERRUPTS, RedisError)) or is_transient(error):
        raise error
    if isinstance(error, InvalidApiKeyError):
        workos.now()  # raises too, unless the key only lacks the permission for this kind
    return reason_of(error)


def has_arrived(engine: Engine, kind: Kind, id: str) -> bool:
    """Return whether the mirror has the object, live or deleted by an event."""
    table = kind.table
    settled = or_(table.deleted_by.is_(None), table.deleted_by != DeletedBy.RESYNC)
    with read_transaction(engine) as tx:
        return tx.execute(select(table.id).where(table.id == id, settled)).one_or_none() is not None


def _retry_later(tx: Connection, request: ColumnElement[bool], problem: str) -> float:
    """Record a failed attempt and schedule the next; return the seconds until then."""
    attempts = (tx.execute(select(Read.attempts).where(request)).scalar_one_or_none() or 0) + 1
    wait = backoff(attempts, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
    tx.execute(update(Read).where(request).values(attempts=attempts, error=problem, due_at=db_now_plus(wait)))
    return wait
