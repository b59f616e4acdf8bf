"""Refreshes: a product that has changed something in WorkOS asks for it to be read, and waits for the mirror.

A web process writes a row of `refreshes` and wakes the process that tails the events API. That process reads from
WorkOS and deletes the row. All requests about one object that came before a read share it; a later one gets its own, so
the mirror then has a state that was read after the request. Nothing depends on refreshes: the events arrive anyway.
"""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, insert, or_, select, update

from models.bulk import is_any_of
from models.database import in_transaction, read_transaction
from models.tables import Cause, DeletedBy, Refresh
from models.types import JsonObject, db_ago, db_now, db_now_plus
from worker.backoff import backoff
from worker.decision.payload import Fields
from worker.errors import BadRequestError, NotFoundError, WorkosSyncError
from worker.kinds import KINDS, Kind
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION
from worker.kinds.user import USER
from worker.mirror.apply import recorded_state, stored_rows
from worker.mirror.change_rows import CausedBy
from worker.repair.reads import (
    FIRST_BACKOFF_SECONDS,
    MAX_BACKOFF_SECONDS,
    confirmed_read,
    has_arrived,
    why_failed,
)
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

ACCESS = "access"
"""In place of a kind: a person's access to a workspace."""
KEEP = timedelta(minutes=10)
"""A request that could not be carried out is dropped after this time."""
MAX_WAITING = 1_000
"""Upper bound on the waiting requests of an API token. Reading that many objects takes about as long as `KEEP`."""


class Target(NamedTuple):
    """The target of a refresh: an object by its kind and key, or (`ACCESS`) a workspace and a person."""

    kind: str
    object_id: str
    user_id: str = ""


class Progress(NamedTuple):
    """The progress of a request."""

    is_done: bool
    """Whether the mirror has the state that was read for it."""
    error: str | None
    """Why the last attempt failed; None if there was none, or if it is done."""


def request(tx: Connection, target: Target, requested_by: str) -> str | None:
    """Request a refresh for the API token with this name, and return the request's id. Ring the tail's bell afterwards.

    If a request for the same target waits, and no read for it is in progress, that one is renewed. Returns None if the
    token has `MAX_WAITING` requests.
    """
    # `_take_next` counts an attempt before the read begins, and clears the error.
    free = or_(Refresh.attempts == 0, Refresh.error.is_not(None))
    one = select(Refresh.id).where(*_is_for(target), free).limit(1).scalar_subquery()
    again = {"requested_at": db_now(), "due_at": db_now(), "attempts": 0, "error": None}
    renewed = update(Refresh).where(Refresh.id == one, free).values(again).returning(Refresh.id)
    if (known := tx.execute(renewed).scalar_one_or_none()) is not None:
        return known
    of_token = select(Refresh.id).where(Refresh.requested_by == requested_by).limit(MAX_WAITING)
    if len(tx.execute(of_token).all()) == MAX_WAITING:
        return None
    id = uuid.uuid4().hex
    tx.execute(insert(Refresh).values(id=id, requested_by=requested_by, **target._asdict()))
    return id


def _is_for(target: Target) -> list[ColumnElement[bool]]:
    return [getattr(Refresh, name) == value for name, value in target._asdict().items()]


def progress(engine: Engine, id: str) -> Progress:
    """Return how far a request is."""
    with read_transaction(engine) as tx:
        row = tx.execute(select(Refresh.error).where(Refresh.id == id)).one_or_none()
    return Progress(row is None, row.error if row else None)


def unknown(tx: Connection, target: Target) -> str | None:
    """Return the first object of a target that the mirror has never seen, as `kind id`; None if it knows them all."""
    is_access = target.kind == ACCESS
    objects = [(ORGANIZATION if is_access else KINDS[target.kind], target.object_id)]
    objects += [(USER, target.user_id)] if is_access else []
    missing = (f"{kind} {id}" for kind, id in objects if not stored_rows(tx, kind, [id]))
    return next(missing, None)


def state_of(tx: Connection, kind: str, id: str) -> JsonObject:
    """Return the state of an object that the mirror knows, as `changes` contains it."""
    return recorded_state(KINDS[kind], stored_rows(tx, KINDS[kind], [id])[id])


def work_due(
    engine: Engine, workos: WorkOSClient, stopping: Callable[[], bool], ended: Callable[[], bool] = lambda: False
) -> None:
    """Carry out the due requests, those of the same target together. A request that fails is retried later.

    Stops before a target if `stopping` returns True. If `ended` does, it also stops within a target, whose requests
    then stay due. So `ended` must not limit the time: a slow target would never be finished.

    Raises as `worker.repair.reads.work_due`.
    """
    while not stopping() and _any_waits(engine) and (found := in_transaction(engine, _take_next)) is not None:
        target, ids, requested_by, attempts = found
        about = {"kind": target.kind, "id": target.object_id, "user_id": target.user_id}
        try:
            _read(engine, workos, target, (Cause.REFRESH, requested_by), ended)
        except _EndedError:
            return
        except Exception as error:  # noqa: BLE001 - `why_failed` raises what is not about the object
            problem = why_failed(workos, error)
            in_transaction(engine, _retry_later, ids, attempts, problem)
            log.warning("refresh_failed", **about, problem=problem)
        else:
            in_transaction(engine, _finish, ids)
            log.info("refreshed", **about, requests=len(ids))


class _EndedError(WorkosSyncError):
    pass


class _Due(NamedTuple):
    target: Target
    ids: list[str]
    """The requests that a read beginning now answers."""
    requested_by: str
    attempts: int


def _is_due() -> ColumnElement[bool]:
    # A newer release may have requested kinds that this one does not know.
    return (Refresh.due_at <= db_now()) & Refresh.kind.in_([*KINDS, ACCESS])


def _is_old() -> ColumnElement[bool]:
    return Refresh.requested_at < db_ago(KEEP)


def _any_waits(engine: Engine) -> bool:
    with read_transaction(engine) as tx:
        return bool(tx.execute(select(exists().where(_is_due() | _is_old()))).scalar_one())


def _take_next(tx: Connection) -> _Due | None:
    """Drop old requests, and mark all requests for the next due target: from now on a new one gets its own read."""
    tx.execute(delete(Refresh).where(_is_old()))
    row = tx.execute(select(Refresh.__table__).where(_is_due()).order_by(Refresh.due_at).limit(1)).one_or_none()
    if row is None:
        return None
    target = Target(row.kind, row.object_id, row.user_id)
    taken = {"attempts": row.attempts + 1, "error": None}
    ids = tx.execute(update(Refresh).where(*_is_for(target)).values(taken).returning(Refresh.id)).scalars()
    return _Due(target, list(ids), row.requested_by, row.attempts + 1)


def _read(engine: Engine, workos: WorkOSClient, target: Target, caused_by: CausedBy, ended: Callable[[], bool]) -> None:
    def read(kind: Kind, id: str) -> bool:
        """Read an object; return whether it exists."""
        if ended():
            raise _EndedError
        after = confirmed_read(engine, workos, kind, id, caused_by).after
        return after is not None and not after.deleted

    if target.kind != ACCESS:
        read(KINDS[target.kind], target.object_id)
        return
    organization_id, user_id = target.object_id, target.user_id
    parents = ((ORGANIZATION, organization_id), (USER, user_id))
    for parent, id in parents:
        if not has_arrived(engine, parent, id):
            read(parent, id)
    memberships = _mirrored(engine, organization_id, user_id)
    try:
        memberships |= _listed(workos, organization_id, user_id)
    except BadRequestError:  # WorkOS may answer so for an id that it does not know; then there is nothing to list
        if all(read(parent, id) for parent, id in parents):
            raise
    for id in sorted(memberships):
        read(MEMBERSHIP, id)


def _listed(workos: WorkOSClient, organization_id: str, user_id: str) -> set[str]:
    try:
        page = workos.memberships_of(organization_id, user_id)
    except NotFoundError:
        return set()  # WorkOS does not have the workspace or the person; the mirror's memberships are still read
    return {Fields(item, "membership").id("id") for item in page.items}


def _mirrored(engine: Engine, organization_id: str, user_id: str) -> set[str]:
    of_pair = (Membership.organization_id == organization_id, Membership.user_id == user_id)
    not_final = Membership.deleted_by.is_distinct_from(DeletedBy.EVENT)
    with read_transaction(engine) as tx:
        return set(tx.execute(select(Membership.id).where(*of_pair, not_final)).scalars())


def _finish(tx: Connection, ids: list[str]) -> None:
    tx.execute(delete(Refresh).where(is_any_of(tx, Refresh.id, ids)))


def _retry_later(tx: Connection, ids: list[str], attempts: int, problem: str) -> None:
    wait = backoff(attempts, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
    failed = {"error": problem, "due_at": db_now_plus(wait)}
    tx.execute(update(Refresh).where(is_any_of(tx, Refresh.id, ids)).values(failed))
